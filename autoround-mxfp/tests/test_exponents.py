# SPDX-License-Identifier: Apache-2.0
"""The rules for the shared exponent against exact arithmetic, over the whole range of float32."""

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch

from auto_round_mxfp.elements import (
    CEIL,
    CEIL_7_25,
    E2M1,
    E2M3,
    E3M2,
    E4M3,
    E5M2,
    FLOOR,
    INT2,
    INT4,
    INT8,
    SCALE_BIAS,
    SCALE_NAN,
)
from auto_round_mxfp.exponents import exponent_of, power_of_two, shared_exponents

CASES = [(e, r) for e in (E2M1, E2M3, E3M2, E4M3, E5M2, INT8, INT4, INT2) for r in (FLOOR, CEIL)] + [(E2M1, CEIL_7_25)]


def floor_log2(x):
    """Exactly, of a positive fraction."""
    guess = math.frexp(float(x))[1] - 1
    while Fraction(2) ** guess > x:
        guess -= 1
    while Fraction(2) ** (guess + 1) <= x:
        guess += 1
    return guess


def written_out(largest, element, rule):
    if rule is FLOOR:
        exponent = floor_log2(Fraction(largest)) - floor_log2(Fraction(element.max))
    else:
        ratio = Fraction(largest) / Fraction(7.25 if rule is CEIL_7_25 else element.max)
        exponent = floor_log2(ratio)
        exponent += Fraction(2) ** exponent != ratio
    return min(max(exponent, -127), 127)


@pytest.mark.parametrize(("element", "rule"), CASES, ids=lambda x: x.name)
def test_exponents_are_exact(element, rule):
    limit = np.float32(rule.limit or element.max)
    points = np.array(
        [1.0, 1.5, 1.75, limit, np.nextafter(limit, np.float32(9e9)), 2.0, np.nextafter(2, 0)], np.float32
    )
    points = np.concatenate([points, np.nextafter(points, np.float32(0))])
    # Normal numbers only: what lies below 2^-126 has the smallest exponent either way, tested next.
    scaled = [np.float32(p) * np.float32(2.0**k) for p in points for k in (-110, -20, -1, 0, 1, 7, 60, 110)]
    largest = np.array([*scaled, np.finfo(np.float32).max, np.finfo(np.float32).tiny], np.float32)
    found = shared_exponents(torch.from_numpy(largest), element, rule).tolist()
    assert found == [written_out(float(x), element, rule) for x in largest]


@pytest.mark.parametrize(("element", "rule"), CASES, ids=lambda x: x.name)
def test_the_ends_of_the_range(element, rule):
    ends = torch.tensor([0.0, 2.0**-149, 2.0**-130, 3.4e38, torch.inf])
    exponents = shared_exponents(ends, element, rule)
    assert exponents[:3].tolist() == [-127] * 3
    codes = exponents + SCALE_BIAS
    assert int(codes.max()) < SCALE_NAN
    assert torch.isfinite(power_of_two(exponents)).all()


def test_a_block_that_asks_for_the_code_of_nan_gets_the_largest_scale():
    # Floor of whole numbers needs the exponent 127 for the largest float32; infinity would need 128, code 255.
    assert shared_exponents(torch.tensor([3.4e38, torch.inf]), INT8, FLOOR).tolist() == [127, 127]


def test_powers_are_those_of_e8m0():
    codes = np.arange(255, dtype=np.uint8)
    ours = power_of_two(torch.arange(255, dtype=torch.int32) - SCALE_BIAS)
    np.testing.assert_array_equal(ours.numpy(), codes.view(ml_dtypes.float8_e8m0fnu).astype(np.float32))
    assert exponent_of(ours).tolist() == list(range(-127, 128))
