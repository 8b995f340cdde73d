# SPDX-License-Identifier: Apache-2.0
"""What authors of data types test with."""
