# SPDX-License-Identifier: Apache-2.0
"""Powers of two below numbers: where on the axis of a small float each number lies, exactly and without logarithms."""

from __future__ import annotations

import math

import torch

__all__ = ["powers_below"]

EXPONENT = 0x7F800000
"""The exponent bits of a float32."""

FRACTION_BITS, BIAS = 23, 127

FEW = 16
"""So many powers are told apart by comparing as fast as bits can be read, in compiled code."""


def powers_below(x: torch.Tensor, least: int, largest: float, out: torch.Tensor | None = None) -> torch.Tensor:
    """The largest power of two that is not above |x|, at least 2^least; float32, shaped like x.

    It is what a float32's exponent bits alone stand for. Compiled code reads those number by number, and compares many
    numbers at once: the same result, in a third of the time where powers are few.

    Args:
        x: float32, contiguous; below the first power of two above `largest` in size, or NaN, of which nothing is said.
        least: an exponent.
        largest: a number.
        out: float32, shaped like x, overwritten and returned; None makes one.
    """
    most = math.frexp(largest)[1] - 1
    if torch.compiler.is_compiling() and most - least < FEW:
        size, powers = x.abs(), torch.full_like(x, 2.0**least)
        for exponent in range(least + 1, most + 1):
            powers = torch.where(size >= 2.0**exponent, 2.0**exponent, powers)
        return powers
    powers = torch.empty_like(x) if out is None else out
    bits = torch.bitwise_and(x.view(torch.int32), EXPONENT, out=powers.view(torch.int32))
    bits.clamp_(min=(least + BIAS) << FRACTION_BITS)
    return powers
