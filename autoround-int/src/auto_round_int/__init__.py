# SPDX-License-Identifier: Apache-2.0
"""Integer data types."""

__version__ = "0.9.0"
