# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint back to modules that compute."""
