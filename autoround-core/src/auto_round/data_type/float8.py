# SPDX-License-Identifier: Apache-2.0
"""The 8-bit floats that torch has as dtypes: to them, and back. What they hold is read from `torch.finfo`."""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F

from auto_round.data_type.kernels import Room
from auto_round.data_type.minifloats import minifloat_values

__all__ = ["float8_codes", "float8_values"]


def float8_codes(x: torch.Tensor, dtype: torch.dtype, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """The nearest values, ties to the even code; those that `minifloats.round_to_minifloat_` rounds to.

    Casts round so. What they make of numbers beyond the largest value differs between versions (2.13 saturates) and
    libraries (`ml_dtypes` gives NaN), so there must be none; and they keep the sign of a number that becomes zero.

    Args:
        x: float32, no larger than the largest value; overwritten.
        dtype: an 8-bit float.
        out: of that dtype, shaped like x; None makes one.

    Returns:
        `out`; zeros are positive, NaN stays NaN.
    """
    out = torch.empty(x.shape, dtype=dtype, device=x.device) if out is None else out
    info = torch.finfo(dtype)
    tie_with_zero = info.smallest_normal * info.eps / 2  # and zero has the even code
    return out.copy_(F.hardshrink(x, tie_with_zero, out=x))


def float8_values(codes: torch.Tensor, *, room: Room | None = None) -> torch.Tensor:
    """The numbers that 8-bit floats stand for, exact; what is no number stays none.

    They go the way of `minifloat_values`, and where one chunk has other things than numbers, that of torch's casts,
    which takes up to ten times as long on a CPU.

    Args:
        codes: in one of torch's 8-bit dtypes.
        room: to work in, which is overwritten with the next call; None makes some.

    Returns:
        float32, of the same shape.
    """
    room = Room() if room is None else room
    codes = codes.contiguous()
    if torch.compiler.is_compiling() or codes.device.type != "cpu" or not _all_numbers(codes, room):
        return room.like(codes, "values").copy_(codes)
    info = torch.finfo(codes.dtype)
    mantissa_bits, smallest_exponent = -math.log2(info.eps), math.log2(info.smallest_normal)
    return minifloat_values(codes.view(torch.uint8), 8, int(mantissa_bits), int(smallest_exponent), room=room)


def _all_numbers(codes: torch.Tensor, room: Room) -> bool:
    """Whether codes are finite: their bytes, without signs, are in the order of magnitudes, others above them."""
    last = _last_code(codes.dtype)
    if last is None or not codes.numel():
        return False
    signed = codes.view(torch.int8)
    sizes = torch.bitwise_and(signed, 0x7F, out=room.like(signed, "sizes", torch.int8))
    return bool(sizes.amax() <= last)


@functools.cache
def _last_code(dtype: torch.dtype) -> int | None:
    """The code of the largest number; None if what would be -0.0 is no number."""
    if torch.tensor([0x80], dtype=torch.uint8).view(dtype).float().isnan().item():
        return None
    return int(torch.tensor([torch.finfo(dtype).max]).to(dtype).view(torch.uint8).item())
