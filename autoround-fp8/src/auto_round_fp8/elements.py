# SPDX-License-Identifier: Apache-2.0
"""The 8-bit floating point numbers: their grids, rounding to them, and their bytes.

Micikevicius et al. 2022, "FP8 Formats for Deep Learning", arXiv:2209.05433, and the "OCP 8-bit Floating Point
Specification (OFP8)", revision 1.0. What lies beyond the largest number becomes that before anything is rounded: casts
of it differ between versions of torch (2.13 saturates) and other libraries (`ml_dtypes` gives NaN).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from auto_round.data_type.binades import powers_below
from auto_round.data_type.float8 import float8_codes
from auto_round.data_type.minifloats import round_to_minifloat_

__all__ = ["E4M3", "E4M3FNUZ", "E5M2", "Element", "codes_of_", "round_to_grid_", "steps_at"]


@dataclass(frozen=True)
class Element:
    """One 8-bit floating point format.

    Attributes:
        name: as in the specification.
        dtype: torch's dtype for it.
        largest: largest finite number.
        mantissa: explicit bits of the mantissa.
        exponent: exponent of the least normal number; numbers below it have its spacing.
    """

    name: str
    dtype: torch.dtype
    largest: float
    mantissa: int
    exponent: int

    @property
    def least_scale(self) -> float:
        """Smallest scale, `1 / (512 largest)`: a group of nothing but zeros has to have one too."""
        return 1.0 / (self.largest * 512.0)


E4M3 = Element("e4m3", torch.float8_e4m3fn, 448.0, 3, -6)
E5M2 = Element("e5m2", torch.float8_e5m2, 57344.0, 2, -14)
E4M3FNUZ = Element("e4m3fnuz", torch.float8_e4m3fnuz, 240.0, 3, -7)


def round_to_grid_(x: torch.Tensor, element: Element, scratch: torch.Tensor | None = None) -> torch.Tensor:
    """Round to the nearest number of the format, half to even, beyond the largest to the largest; -0 becomes 0.

    Args:
        x: float32, changed in place; not NaN.
        scratch: float32, of the shape of x, overwritten; None makes one.

    Returns:
        x.
    """
    x.clamp_(-element.largest, element.largest)
    return round_to_minifloat_(x, element.mantissa, element.exponent, element.largest, scratch)


def codes_of_(x: torch.Tensor, element: Element, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """What `round_to_grid_` rounds to, in the element's own dtype; in `out`, where there is one."""
    x.clamp_(-element.largest, element.largest)
    return float8_codes(x, element.dtype, out=out)


def steps_at(x: torch.Tensor, element: Element, scratch: torch.Tensor | None = None) -> torch.Tensor:
    """The spacing of the format at x, `2^(max(floor(log2 |x|), exponent) - mantissa)`; float32, shaped like x.

    Args:
        x: float32, not NaN; anything beyond the largest number has the spacing there.
        scratch: float32, of the shape of x, overwritten and returned; None makes one.
    """
    cut_off = torch.clamp(x, -element.largest, element.largest, out=scratch)
    return powers_below(cut_off, element.exponent, element.largest, scratch).mul_(2.0**-element.mantissa)
