# SPDX-License-Identifier: Apache-2.0
"""Rounding to the values of an element format, and between those values and their codes.

Adding a large enough power of two to a float32 makes its last bit as coarse as the grid; the addition itself rounds,
half to even, and subtracting the power again is exact. With `p` the exponent of x, not below that of the smallest
normal value, and `m` the bits of the mantissa, the steps of the grid around x are 2^(p - m) and the power is
2^(23 + p - m). One and a half times it serves both signs. No logarithm, no comparison.
"""

from __future__ import annotations

import functools

import torch

from auto_round.data_type.binades import powers_below
from auto_round_mxfp.elements import Element, element_values

__all__ = ["EXPONENT_FIELD", "FRACTION_BITS", "codes_of", "round_to_grid", "values_of"]

EXPONENT_FIELD = 0x7F800000
FRACTION_BITS = 23

HALF_FRACTION_BITS, HALF_SMALLEST_EXPONENT = 10, -14
"""Of float16."""


def round_to_grid(x: torch.Tensor, element: Element, scratch: torch.Tensor) -> torch.Tensor:
    """Round to the nearest value of the format, ties to the even code, cutting off at its largest; in place.

    Args:
        x: float32, contiguous.
        scratch: like x, overwritten.

    Returns:
        x; zeros are positive, NaN stays NaN.
    """
    x.clamp_(-element.max, element.max)
    coarse = FRACTION_BITS - element.mantissa_bits
    if element.whole:
        return x.add_(1.5 * 2**coarse).sub_(1.5 * 2**coarse)
    powers, factor = powers_below(x, element.smallest_exponent, element.max, scratch), 1.5 * 2**coarse
    return x.add_(powers, alpha=factor).sub_(powers, alpha=factor)


def codes_of(values: torch.Tensor, element: Element) -> torch.Tensor:
    """The codes of values that lie on the grid, uint8: two's complement of whole numbers, else sign and magnitude.

    A float16 has five bits of exponent, more than any element: a value times the power of two that makes the smallest
    normal one of its format the smallest normal float16 has the bits of its code in the upper bits of that float16,
    values below the normal ones included. In halves of the size every step also takes half as long.

    Args:
        values: float32, contiguous.
    """
    if element.whole:
        coarse = FRACTION_BITS - element.mantissa_bits
        lowest = (values + 1.5 * 2**coarse).view(torch.int32).bitwise_and_((1 << element.bits) - 1)
        return lowest.to(torch.uint8)
    moved = values * 2.0 ** (HALF_SMALLEST_EXPONENT - element.smallest_exponent)
    bits = moved.to(torch.float16).view(torch.int16)
    sign = 1 << (element.bits - 1)
    signs = (bits >> (16 - element.bits)).bitwise_and_(sign)
    magnitudes = (bits >> (HALF_FRACTION_BITS - element.mantissa_bits)).bitwise_and_(sign - 1)
    return magnitudes.bitwise_or_(signs).to(torch.uint8)


def values_of(codes: torch.Tensor, element: Element) -> torch.Tensor:
    """The values of codes, float32, of the same shape."""
    table = _table(element, codes.device)
    return table.index_select(0, codes.reshape(-1).int()).reshape(codes.shape)


@functools.lru_cache(maxsize=64)
def _table(element: Element, device: torch.device) -> torch.Tensor:
    return torch.tensor(element_values(element), dtype=torch.float32, device=device)
