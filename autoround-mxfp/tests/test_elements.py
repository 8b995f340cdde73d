# SPDX-License-Identifier: Apache-2.0
"""Every code of every element format, and rounding on and around every tie, against two other implementations."""

import gfloat
import ml_dtypes
import numpy as np
import pytest
import torch
from gfloat import formats

from auto_round_mxfp.elements import E2M1, E2M3, E3M2, E4M3, E5M2, INT2, INT4, INT8, element_values
from auto_round_mxfp.rounding import codes_of, round_to_grid, values_of

FLOATS = {
    E2M1: (ml_dtypes.float4_e2m1fn, formats.format_info_ocp_e2m1),
    E2M3: (ml_dtypes.float6_e2m3fn, formats.format_info_ocp_e2m3),
    E3M2: (ml_dtypes.float6_e3m2fn, formats.format_info_ocp_e3m2),
    E4M3: (ml_dtypes.float8_e4m3fn, formats.format_info_ocp_e4m3),
    E5M2: (ml_dtypes.float8_e5m2, formats.format_info_ocp_e5m2),
}
ELEMENTS = [*FLOATS, INT8, INT4, INT2]


def grid(element):
    return np.array(sorted({v for v in element_values(element) if abs(v) <= element.max}), np.float32)


def rounded(x, element):
    x = torch.from_numpy(x.astype(np.float32))
    return round_to_grid(x, element, torch.empty_like(x))


def neighbourhood(element):
    """All values, all ties between two, and the float32 numbers next to each of them."""
    values = grid(element)
    points = np.concatenate([values, (values[1:] + values[:-1]) / 2])
    return np.concatenate([points, np.nextafter(points, np.float32(np.inf)), np.nextafter(points, np.float32(-np.inf))])


@pytest.mark.parametrize("element", FLOATS, ids=lambda e: e.name)
def test_every_code_stands_for_the_same_value_elsewhere(element):
    codes = np.arange(1 << element.bits, dtype=np.uint8)
    other, described = FLOATS[element]
    ours = values_of(torch.from_numpy(codes), element).numpy()
    np.testing.assert_array_equal(ours, codes.view(other).astype(np.float32))
    np.testing.assert_array_equal(ours, [gfloat.decode_float(described, int(code)).fval for code in codes])
    assert np.nanmax(np.where(np.isinf(ours), np.nan, ours)) == element.max == described.max


@pytest.mark.parametrize("element", [INT8, INT4, INT2], ids=lambda e: e.name)
def test_whole_numbers_are_two_s_complement(element):
    codes = torch.arange(1 << element.bits, dtype=torch.uint8)
    signed = (codes.view(torch.int8) << (8 - element.bits)) >> (8 - element.bits)  # extends the sign
    assert torch.equal(values_of(codes, element), signed.float() / 2**element.mantissa_bits)
    info = formats.format_info_ocp_int8
    if element is INT8:
        assert [gfloat.decode_float(info, int(c)).fval for c in codes] == values_of(codes, element).tolist()


@pytest.mark.parametrize("element", FLOATS, ids=lambda e: e.name)
def test_every_tie_rounds_as_elsewhere(element):
    x = neighbourhood(element)
    other, described = FLOATS[element]
    inside = np.clip(x, -element.max, element.max)  # beyond, ml_dtypes has NaN and infinities of its own
    ours = rounded(x, element).numpy()
    np.testing.assert_array_equal(ours, inside.astype(other).astype(np.float32))
    np.testing.assert_array_equal(ours, [gfloat.round_float(described, float(v), sat=True) for v in x])


@pytest.mark.parametrize("element", [INT8, INT4, INT2], ids=lambda e: e.name)
def test_every_tie_of_whole_numbers_goes_to_the_even_one(element):
    x, steps = neighbourhood(element), 2.0**element.mantissa_bits
    wanted = np.clip(np.rint(x.astype(np.float64) * steps) / steps, -element.max, element.max)
    np.testing.assert_array_equal(rounded(x, element).numpy(), wanted)


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda e: e.name)
def test_a_float32_of_every_size_rounds_to_the_nearest_value(element):
    # Every exponent of float32, subnormal numbers included, and every first eight bits of a fraction.
    x = (np.arange(0, 255 << 23, 1 << 15, dtype=np.uint32)).view(np.float32)
    values = grid(element)
    ours = rounded(x, element).numpy()
    wide = x.astype(np.float64)
    at = np.clip(np.searchsorted(values, x), 1, len(values) - 1)
    nearest = np.minimum(np.abs(wide - values[at]), np.abs(wide - values[at - 1]))
    np.testing.assert_array_equal(np.abs(wide - ours), nearest)
    np.testing.assert_array_equal(rounded(-x, element).numpy(), -ours)


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda e: e.name)
def test_codes_and_values_are_each_other_s_inverse(element):
    values = torch.from_numpy(grid(element))
    codes = codes_of(values.clone(), element)
    assert torch.equal(values_of(codes, element), values)
    assert len(set(codes.tolist())) == len(values)
    assert int(codes.max()) < 1 << element.bits


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda e: e.name)
def test_zeros_have_no_sign_and_nan_stays(element):
    x = rounded(np.array([-0.0, -1e-30, np.nan, np.inf, -np.inf]), element)
    assert not torch.signbit(x[:2]).any()
    assert torch.isnan(x[2])
    assert x[3:].tolist() == [element.max, -element.max]
