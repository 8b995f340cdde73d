# SPDX-License-Identifier: Apache-2.0
"""Bytes as people read them."""

__all__ = ["readable_size"]


def readable_size(count: float) -> str:
    """Decimal units, as disks are sold: `6.7 MB`, `1.42 GB`."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
