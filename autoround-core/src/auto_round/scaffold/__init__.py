# SPDX-License-Identifier: Apache-2.0
"""A package to begin with: a complete data type of one's own, written out under a name."""
