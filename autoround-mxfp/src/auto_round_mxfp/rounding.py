# SPDX-License-Identifier: Apache-2.0
"""Rounding to the values of an element format, and between those values and their codes."""

from __future__ import annotations

import torch

from auto_round.data_type.float8 import float8_codes, float8_values
from auto_round.data_type.kernels import Room
from auto_round.data_type.minifloats import minifloat_codes, minifloat_values, round_to_minifloat_
from auto_round_mxfp.elements import E4M3, E5M2, Element

__all__ = ["codes_of", "round_to_grid", "values_of"]

WHOLE = 1.5 * 2**23
"""A number near which float32 holds whole numbers only: adding it rounds half to even, subtracting it is exact."""

OF_TORCH = {E4M3: torch.float8_e4m3fn, E5M2: torch.float8_e5m2}
"""Elements that torch has as dtypes, so that casts of their values are their codes."""


def round_to_grid(x: torch.Tensor, element: Element, scratch: torch.Tensor) -> torch.Tensor:
    """Round to the nearest value of the format, ties to the even code, cutting off at its largest; in place.

    Args:
        x: float32, contiguous.
        scratch: like x, overwritten.

    Returns:
        x; zeros are positive, NaN stays NaN.
    """
    x.clamp_(-element.max, element.max)
    if element.whole:
        coarse = WHOLE * 2**-element.mantissa_bits
        return x.add_(coarse).sub_(coarse)
    return round_to_minifloat_(x, element.mantissa_bits, element.smallest_exponent, element.max, scratch)


def codes_of(
    x: torch.Tensor, element: Element, *, out: torch.Tensor | None = None, room: Room | None = None
) -> torch.Tensor:
    """The codes of what `round_to_grid` rounds to, uint8: two's complement of whole numbers, else sign and magnitude.

    Args:
        x: float32, contiguous, overwritten.
        out: uint8, shaped like x; None makes one.
        room: to work in.

    Returns:
        `out`.
    """
    out = torch.empty(x.shape, dtype=torch.uint8, device=x.device) if out is None else out
    x.clamp_(-element.max, element.max)
    if element.whole:
        lowest = x.add_(WHOLE * 2**-element.mantissa_bits).view(torch.int32)
        return out.copy_(lowest.bitwise_and_((1 << element.bits) - 1))
    if element in OF_TORCH:
        dtype = OF_TORCH[element]
        float8_codes(x, dtype, out=out.view(dtype))
        return out
    return minifloat_codes(
        x, element.bits, element.mantissa_bits, element.smallest_exponent, element.max, out=out, room=room
    )


def values_of(codes: torch.Tensor, element: Element, *, room: Room | None = None) -> torch.Tensor:
    """The values of codes, float32, of the same shape; codes that are none are NaN or infinite.

    Args:
        room: to work in, which is overwritten with the next call; None makes some.
    """
    room = Room() if room is None else room
    if element.whole:
        unused = 8 - element.bits  # shifted out to the left, a code is a signed byte times a power of two
        bytes_ = room.like(codes, "bytes", torch.int8).copy_(codes.view(torch.int8)).bitwise_left_shift_(unused)
        return room.like(codes, "values").copy_(bytes_).mul_(2.0 ** -(unused + element.mantissa_bits))
    if element in OF_TORCH:
        return float8_values(codes.view(OF_TORCH[element]), room=room)
    return minifloat_values(codes, element.bits, element.mantissa_bits, element.smallest_exponent, room=room)
