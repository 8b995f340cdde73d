# SPDX-License-Identifier: Apache-2.0
"""Products with 4-bit weights on CPUs, by the kernel that torch brings.

It reads a quarter of the bytes a decoded weight has, so it wins where reading is what takes the time: a few tokens at
once. Scales are bfloat16 there; files with float16 scales are rounded, to 2^-9 of a scale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from auto_round.data_type.grouping import group_count

if TYPE_CHECKING:
    from auto_round.data_type import Codes

__all__ = ["Int4Kernel", "int4_kernel"]

MIDDLE = 8
"""The code the kernel takes for zero."""

GROUPS = (32, 64, 128, 256)
ROWS = 16
"""What the kernel takes: these group sizes, multiples of this many outputs."""

INNER_TILES = 1
"""Of no effect on CPUs, but the operator asks for it."""


class Int4Kernel:
    """One weight, packed for the kernel."""

    most_rows = 8  # measured on two cores: 5 times as fast for one row, 2.5 to 4.5 for four, slower from sixteen on

    def __init__(self, codes: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor, group_size: int) -> None:
        """Pack.

        Args:
            codes: int32 [out_features, in_features], 0 to 15.
            scale, offset: [out_features, groups]; a weight is (code - 8) scale + offset.
        """
        self._packed = torch._convert_weight_to_int4pack_for_cpu(codes, INNER_TILES)  # noqa: SLF001 - the only name
        self._scale = torch.stack([scale, offset], -1).transpose(0, 1).contiguous().bfloat16()
        self._group_size = group_size

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = torch._weight_int4pack_mm_for_cpu(  # noqa: SLF001 - the only name there is
            x.contiguous(), self._packed, self._group_size, self._scale
        )
        return product


def int4_kernel(codes: Codes) -> Int4Kernel | None:
    """The kernel for codes of an integer data type, or None where it takes them not."""
    scheme, (rows, cols) = codes.scheme, codes.shape
    stored = codes.tensors["codes"]
    size = cols if scheme.group_size == -1 else scheme.group_size
    fits = scheme.bits == 4 and size in GROUPS and cols % int(size) == 0 and rows % ROWS == 0
    if not fits or codes.dtype != torch.bfloat16 or stored.device.type != "cpu":
        return None
    if not hasattr(torch, "_weight_int4pack_mm_for_cpu"):
        return None
    assert isinstance(size, int)
    scale = codes.tensors["scale"].float().expand(rows, group_count((rows, cols), size)[0] // rows)
    zero_point = codes.tensors.get("zero_point")
    if zero_point is None:
        return Int4Kernel(stored.int() + MIDDLE, scale, torch.zeros_like(scale), size)
    return Int4Kernel(stored.int(), scale, scale * (MIDDLE - zero_point.float()), size)
