# SPDX-License-Identifier: Apache-2.0
"""Microscaling under core's conformance suite, one class for each element and rule."""

import pytest

from auto_round import QuantizationScheme
from auto_round.testing.conformance import DataTypeConformance

pytestmark = pytest.mark.slow


class Microscaling(DataTypeConformance):
    scale_dtypes = (None,)  # exponents are bytes
    scale_equivariant = (2.0, 0.25)  # a scale is a power of two
    smooth = ("v",)  # which follows the largest weight in jumps


def suite(name, bits, **more):
    declared = {**more, "name": name, "schemes": (QuantizationScheme(bits, 32, True, name),)}
    return type(f"Test_{name}", (Microscaling,), declared)


TestFp4 = suite("mx_fp4", 4)
TestFp4Rceil = suite("mx_fp4_rceil", 4)
TestFp6E2M3 = suite("mx_fp6e2m3", 6)
TestFp6E3M2 = suite("mx_fp6e3m2", 6)
TestFp8E4M3 = suite("mx_fp8e4m3", 8)
TestFp8E4M3Rceil = suite("mx_fp8e4m3_rceil", 8)
# v counts in units of the block's scale; the largest element is 57344 of them, and neighbours are 8192 apart.
TestFp8E5M2 = suite("mx_fp8e5m2", 8, offsets_matter=False)
TestInt8 = suite("mx_int8", 8)
TestInt4 = suite("mx_int4", 4)
TestInt2 = suite("mx_int2", 2)
