# SPDX-License-Identifier: Apache-2.0
"""Whether a weight is numbers."""

from __future__ import annotations

import math

import torch

__all__ = ["not_finite"]


def not_finite(tensor: torch.Tensor) -> int:
    """How many values of a tensor are NaN or infinite; 0 for a tensor of whole numbers.

    They are counted only where the least or the largest value, which NaN becomes too, is one of them: that takes one
    pass and no memory.
    """
    if not tensor.is_floating_point() or not tensor.numel():
        return 0
    if tensor.dtype.itemsize == 1:
        tensor = tensor.float()  # nothing compares 8-bit floats
    if all(math.isfinite(end.item()) for end in torch.aminmax(tensor)):
        return 0
    return int((~torch.isfinite(tensor)).sum())
