# SPDX-License-Identifier: Apache-2.0
"""One run from beginning to end: how far it is, what it took."""
