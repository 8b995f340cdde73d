# SPDX-License-Identifier: Apache-2.0
"""Shared exponents of blocks, exactly: on the bits of float32 values, without logarithms."""

from __future__ import annotations

import torch

from auto_round_mxfp.elements import SCALE_BIAS, Element, ScaleRule

__all__ = ["LIMIT", "exponent_of", "power_of_two", "shared_exponents", "wide_exponents"]

LIMIT = 127
"""Shared exponents lie in [-127, 127]; the next one up would be the code that E8M0 keeps for NaN."""

SMALLEST = 1 << 22
"""Bits of 2^-127 as a float32, a subnormal number."""


SMALLEST_NORMAL = 1 << 23
"""Bits of 2^-126."""


def wide_exponents(largest: torch.Tensor, element: Element, rule: ScaleRule) -> torch.Tensor:
    """The exponents that a rule gives, not yet kept in range.

    The exponent field of A is floor(log2 A) + 127. Rounding up happens where the fraction of A exceeds that of the
    rule's limit; adding `rule.carry` to the bits carries into the field exactly there.

    Args:
        largest: the largest magnitude of each block, float32, not negative.

    Returns:
        int32, of the same shape.
    """
    bits, carry = largest.view(torch.int32), rule.carry(element)
    if carry:
        bits = bits + (bits >= SMALLEST_NORMAL).int() * carry  # subnormal fractions say nothing, and clamping decides
    return (bits >> 23).sub_(SCALE_BIAS + element.largest_exponent)


def shared_exponents(largest: torch.Tensor, element: Element, rule: ScaleRule) -> torch.Tensor:
    """The exponent of each block, int32 in [-127, 127]; a block of zeros has the smallest."""
    return wide_exponents(largest, element, rule).clamp_(-LIMIT, LIMIT)


def power_of_two(exponents: torch.Tensor) -> torch.Tensor:
    """2^E exactly, float32, of int32 exponents in [-127, 127]."""
    return (exponents + SCALE_BIAS << 23).clamp_(min=SMALLEST).view(torch.float32)


def exponent_of(powers: torch.Tensor) -> torch.Tensor:
    """Undo `power_of_two`."""
    return (powers.float().contiguous().view(torch.int32) >> 23).sub_(SCALE_BIAS)
