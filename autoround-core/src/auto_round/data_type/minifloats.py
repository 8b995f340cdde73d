# SPDX-License-Identifier: Apache-2.0
"""Floats of few bits, held in float32: rounding to them, their codes, and back.

Adding a large enough number to a float32 makes its last bit as coarse as a grid is; the addition itself rounds, half to
even, and subtracting the number again is exact. With 2^e the power of two below |x|, at least that of the smallest
normal value, and m the bits of the mantissa, the grid around x has steps of 2^(e - m), and such a number is any of few
bits in [2^(e + 23 - m), 2^(e + 24 - m)): one and a half times the power for numbers of either sign, or x itself, cut
to 12 bits and multiplied, which compiled code finds faster (Dekker 1971, doi:10.1007/BF01397083, section 5).
"""

from __future__ import annotations

import torch

from auto_round.data_type.binades import powers_below
from auto_round.data_type.kernels import Room

__all__ = ["minifloat_codes", "minifloat_values", "round_to_minifloat_"]

FRACTION_BITS = 23
"""Of float32."""

HALF_FRACTION_BITS, HALF_SMALLEST_EXPONENT = 10, -14
"""Of float16."""

CUT = 2.0**12 + 1
"""What a float32 is multiplied by to be cut to 12 bits."""


def round_to_minifloat_(
    x: torch.Tensor, mantissa_bits: int, smallest_exponent: int, largest: float, scratch: torch.Tensor | None = None
) -> torch.Tensor:
    """Round to the nearest value of a format, ties to the even code, in place.

    Args:
        x: float32, contiguous; below the first power of two above `largest` in size, and that is below 2^100.
        mantissa_bits: stored bits of the mantissa, at most 10.
        smallest_exponent: that of the smallest normal value; below it, steps get no finer.
        largest: the largest value.
        scratch: float32, shaped like x, overwritten; None makes one.

    Returns:
        x; zeros are positive, NaN stays NaN.
    """
    coarse = FRACTION_BITS - mantissa_bits
    if torch.compiler.is_compiling():
        times = x * CUT
        few_bits = times - (times - x)
        steps = torch.where(x.abs() < 2.0**smallest_exponent, 1.5 * 2.0**smallest_exponent, few_bits) * 2.0**coarse
        return x.add_(steps).sub_(steps)
    powers, factor = powers_below(x, smallest_exponent, largest, scratch), 1.5 * 2.0**coarse
    return x.add_(powers, alpha=factor).sub_(powers, alpha=factor)


def minifloat_codes(
    x: torch.Tensor,
    bits: int,
    mantissa_bits: int,
    smallest_exponent: int,
    largest: float,
    *,
    out: torch.Tensor | None = None,
    room: Room | None = None,
) -> torch.Tensor:
    """The codes of the values that `round_to_minifloat_` rounds to: a sign, and magnitudes counted from zero on.

    A float16 has five bits of exponent: a value times the power of two that makes the smallest normal one of its
    format the smallest normal float16 has the bits of its code in the upper bits of that float16, values below the
    normal ones included. In halves of the size every step takes half as long. Compiled code takes bits one by one, and
    compares: within a binade steps are even, and codes a straight line, rounded.

    Args:
        x: as in `round_to_minifloat_`, no larger than `largest`; overwritten.
        bits: of a code, at most 8.
        mantissa_bits: at least 1.
        smallest_exponent, largest: of the format.
        out: uint8, shaped like x; None makes one.
        room: to work in.

    Returns:
        `out`; zeros are positive, and NaN has the code of some number.
    """
    out = torch.empty(x.shape, dtype=torch.uint8, device=x.device) if out is None else out
    sign = 1 << (bits - 1)
    if torch.compiler.is_compiling():
        size, per_step = x.abs(), 2.0 ** (mantissa_bits - smallest_exponent)
        codes = (size * per_step).round()
        for binade in range(1, _binades(bits, mantissa_bits)):
            line = (size * (per_step / 2.0**binade)).round() + (binade << mantissa_bits)
            codes = torch.where(size < 2.0 ** (smallest_exponent + binade), codes, line)
        tie_with_zero = 2.0 ** (smallest_exponent - mantissa_bits - 1)  # which has the even code
        return out.copy_(torch.where(x < -tie_with_zero, codes + sign, codes))
    room = Room() if room is None else room
    round_to_minifloat_(x, mantissa_bits, smallest_exponent, largest, room.like(x, "powers"))
    x.mul_(2.0 ** (HALF_SMALLEST_EXPONENT - smallest_exponent))
    halves = room.like(x, "halves", torch.float16).copy_(x).view(torch.int16)
    # A sign fills all bits above it when shifted, minus a power of two: that is put back, the sign of a code added.
    above = HALF_FRACTION_BITS - mantissa_bits
    minus_signs = torch.bitwise_right_shift(halves, 15, out=room.like(x, "signs", torch.int16))
    halves.bitwise_right_shift_(above).sub_(minus_signs, alpha=(1 << (15 - above)) + sign)
    return out.copy_(halves).bitwise_and_((1 << bits) - 1)  # which only NaN needs


def minifloat_values(
    codes: torch.Tensor, bits: int, mantissa_bits: int, smallest_exponent: int, *, room: Room | None = None
) -> torch.Tensor:
    """The values of codes, for formats all of whose codes are numbers.

    In the way of `minifloat_codes`.

    Args:
        codes: uint8, below 2^bits.
        bits, mantissa_bits, smallest_exponent: of the format.
        room: to work in, which is overwritten with the next call; None makes some.

    Returns:
        float32, of the same shape; a code with nothing but a sign is -0.0.
    """
    sign = 1 << (bits - 1)
    if torch.compiler.is_compiling():
        places = codes.float()
        negative = places >= sign
        sizes = torch.where(negative, places - sign, places)
        step = 2.0 ** (smallest_exponent - mantissa_bits)
        values = sizes * step
        for binade in range(1, _binades(bits, mantissa_bits)):
            line = (sizes - (binade << mantissa_bits)) * (step * 2.0**binade)
            values = torch.where(sizes < (binade + 1 << mantissa_bits), values, line)
        return torch.where(negative, -values, values)
    room = Room() if room is None else room
    halves = room.like(codes, "halves", torch.int16).copy_(codes)
    signs = torch.bitwise_right_shift(halves, bits - 1, out=room.like(codes, "signs", torch.int16))
    above = HALF_FRACTION_BITS - mantissa_bits
    # The sign moves from where it is in a code to where a float16 has it.
    halves.bitwise_left_shift_(above).add_(signs, alpha=(1 << 15) - (sign << above))
    values = room.like(codes, "values").copy_(halves.view(torch.float16))
    return values.mul_(2.0 ** (smallest_exponent - HALF_SMALLEST_EXPONENT))


def _binades(bits: int, mantissa_bits: int) -> int:
    """Runs of values with one step between them; numbers below the normal ones belong to the first."""
    return (1 << (bits - 1 - mantissa_bits)) - 1
