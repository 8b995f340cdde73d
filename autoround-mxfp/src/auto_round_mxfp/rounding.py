# SPDX-License-Identifier: Apache-2.0
"""Rounding to the values of an element format, and between those values and their codes."""

from __future__ import annotations

import functools

import torch

from auto_round.data_type.minifloats import minifloat_codes, minifloat_values, round_to_minifloat_
from auto_round_mxfp.elements import E4M3, E5M2, Element, element_values

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


def codes_of(values: torch.Tensor, element: Element) -> torch.Tensor:
    """The codes of values that lie on the grid, uint8: two's complement of whole numbers, else sign and magnitude.

    Args:
        values: float32, contiguous, overwritten.
    """
    if element.whole:
        lowest = (values + WHOLE * 2**-element.mantissa_bits).view(torch.int32)
        return lowest.bitwise_and_((1 << element.bits) - 1).to(torch.uint8)
    if element in OF_TORCH:
        return values.to(OF_TORCH[element]).view(torch.uint8)
    return minifloat_codes(values, element.bits, element.mantissa_bits, element.smallest_exponent)


def values_of(codes: torch.Tensor, element: Element) -> torch.Tensor:
    """The values of codes, float32, of the same shape; codes that are none are NaN or infinite."""
    if not element.whole and element not in OF_TORCH:
        return minifloat_values(codes, element.bits, element.mantissa_bits, element.smallest_exponent)
    table = _table(element, codes.device)
    return table.index_select(0, codes.reshape(-1).int()).reshape(codes.shape)


@functools.lru_cache(maxsize=64)
def _table(element: Element, device: torch.device) -> torch.Tensor:
    return torch.tensor(element_values(element), dtype=torch.float32, device=device)
