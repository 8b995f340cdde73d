# SPDX-License-Identifier: Apache-2.0
"""The element formats and the scale rules of microscaling, as data; imports no torch.

OCP Microscaling Formats (MX) Specification 1.0, section 5.3 for the elements and 6.3 for the floor rule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = [
    "CEIL",
    "CEIL_7_25",
    "E2M1",
    "E2M3",
    "E3M2",
    "E4M3",
    "E5M2",
    "FLOOR",
    "INT2",
    "INT4",
    "INT8",
    "SCALE_BIAS",
    "SCALE_NAN",
    "Element",
    "ScaleRule",
    "element_values",
]

SCALE_BIAS = 127
"""What is added to a shared exponent to store it as E8M0."""

SCALE_NAN = 255
"""The one code of E8M0 that is no scale; never written."""


@dataclass(frozen=True)
class Element:
    """How one element of a block is stored.

    Attributes:
        name: as the specification calls it, in lower case.
        bits: bits of a code.
        exponent_bits: bits of the exponent; 0 for whole numbers.
        mantissa_bits: stored bits of the mantissa; for whole numbers, bits after the point.
        max: the largest value.
    """

    name: str
    bits: int
    exponent_bits: int
    mantissa_bits: int
    max: float

    @property
    def whole(self) -> bool:
        """Whether the grid is even all over: two's complement, no exponent."""
        return self.exponent_bits == 0

    @property
    def largest_exponent(self) -> int:
        """Exponent of the largest value, `emax` of the specification."""
        return math.frexp(self.max)[1] - 1

    @property
    def smallest_exponent(self) -> int:
        """Exponent below which steps no longer get finer: that of the smallest normal value."""
        return 0 if self.whole else 2 - (1 << (self.exponent_bits - 1))


E2M1 = Element("e2m1", 4, 2, 1, 6.0)
E2M3 = Element("e2m3", 6, 2, 3, 7.5)
E3M2 = Element("e3m2", 6, 3, 2, 28.0)
E4M3 = Element("e4m3", 8, 4, 3, 448.0)
E5M2 = Element("e5m2", 8, 5, 2, 57344.0)
INT8 = Element("int8", 8, 0, 6, 127 / 64)
INT4 = Element("int4", 4, 0, 2, 7 / 4)
INT2 = Element("int2", 2, 0, 0, 1.0)


@dataclass(frozen=True)
class ScaleRule:
    """How the shared exponent follows from the largest magnitude of a block.

    Attributes:
        name: ending of the data types that use it.
        formula: what it computes, for descriptions; A is the largest magnitude, m the element's largest value.
        rounds_up: whether the exponent is rounded up where A would exceed `limit`, or down always.
        limit: the largest value that may be cut off to m; None means m itself, so nothing is cut off.
    """

    name: str
    formula: str
    rounds_up: bool = False
    limit: float | None = None

    def carry(self, element: Element) -> int:
        """What, added to the bits of a float32, carries into its exponent where this rule rounds up."""
        if not self.rounds_up:
            return 0
        fraction = math.frexp(self.limit or element.max)[0] * 2 - 1
        return (1 << 23) - 1 - int(fraction * (1 << 23))


FLOOR = ScaleRule("floor", "floor(log2 A) - floor(log2 m)")
CEIL = ScaleRule("rceil", "ceil(log2(A / m))", rounds_up=True)
CEIL_7_25 = ScaleRule("rceil_v2", "ceil(log2(A / 7.25)), with up to 7.25 cut off to 6", rounds_up=True, limit=7.25)
"""For e2m1 only (arXiv:2607.24377)."""


def element_values(element: Element) -> list[float]:
    """The value of every code, in the order of codes; codes that are none are NaN or infinite."""
    count = 1 << element.bits
    if element.whole:
        half = count // 2
        return [(code - count * (code >= half)) / (1 << element.mantissa_bits) for code in range(count)]
    positive = [_magnitude(element, code) for code in range(count // 2)]
    return positive + [-value for value in positive]


def _magnitude(element: Element, code: int) -> float:
    exponent, mantissa = code >> element.mantissa_bits, code & ((1 << element.mantissa_bits) - 1)
    normal = exponent > 0
    fraction = normal + mantissa / (1 << element.mantissa_bits)
    value: float = fraction * 2.0 ** (element.smallest_exponent + exponent - normal)
    if value <= element.max:
        return value
    return math.inf if element.exponent_bits == 5 and mantissa == 0 else math.nan  # only e5m2 has infinities
