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


def minifloat_codes(values: torch.Tensor, bits: int, mantissa_bits: int, smallest_exponent: int) -> torch.Tensor:
    """The codes of values of a format: a sign, and the magnitudes counted from zero on.

    A float16 has five bits of exponent: a value times the power of two that makes the smallest normal one of its
    format the smallest normal float16 has the bits of its code in the upper bits of that float16, values below the
    normal ones included. In halves of the size every step takes half as long. Compiled code takes bits one by one, and
    compares: steps double from one binade to the next, so a code is the least of straight lines, one for each binade.

    Args:
        values: float32, contiguous, as `round_to_minifloat_` leaves them, overwritten. -0.0, which
            it never leaves, has a code of its own, but compiled code takes it for 0.0.
        bits: of a code, at most 8.

    Returns:
        uint8, of the same shape.
    """
    sign = 1 << (bits - 1)
    if torch.compiler.is_compiling():
        size, codes = values.abs(), values.new_full((), torch.inf)
        for binade in range((1 << (bits - 1 - mantissa_bits)) - 1):
            per_step = 2.0 ** (mantissa_bits - smallest_exponent - binade)
            codes = torch.minimum(codes, size * per_step + (binade << mantissa_bits))
        return torch.where(values < 0, codes + sign, codes).to(torch.uint8)
    halves = values.mul_(2.0 ** (HALF_SMALLEST_EXPONENT - smallest_exponent)).to(torch.float16).view(torch.int16)
    above = HALF_FRACTION_BITS - mantissa_bits  # where the code begins; its sign is at the other end of the float16
    codes = halves.bitwise_right_shift_(above).to(torch.uint8).bitwise_and_(sign - 1)
    return codes.bitwise_or_(halves.bitwise_right_shift_(16 - bits - above).to(torch.uint8).bitwise_and_(sign))


def minifloat_values(codes: torch.Tensor, bits: int, mantissa_bits: int, smallest_exponent: int) -> torch.Tensor:
    """Undo `minifloat_codes`, for formats all of whose codes are numbers.

    Args:
        codes: uint8, below 2^bits.

    Returns:
        float32, of the same shape; a code with nothing but a sign is -0.0.
    """
    sign = 1 << (bits - 1)
    halves = codes.to(torch.int16)
    signs = (halves << (16 - bits)).bitwise_and_(-(1 << 15))
    halves.bitwise_and_(sign - 1).bitwise_left_shift_(HALF_FRACTION_BITS - mantissa_bits).bitwise_or_(signs)
    return halves.view(torch.float16).float().mul_(2.0 ** (smallest_exponent - HALF_SMALLEST_EXPONENT))
