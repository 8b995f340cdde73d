# SPDX-License-Identifier: Apache-2.0
"""The element grids, number by number, against two libraries that do not use torch."""

import gfloat
import gfloat.formats
import ml_dtypes
import numpy as np
import pytest
import torch

from auto_round.data_type.float8 import float8_values
from auto_round_fp8.elements import E4M3, E4M3FNUZ, E5M2, codes_of_, round_to_grid_, steps_at

# gfloat has no name for this one, but takes its definition: one exponent lower, finite, NaN where -0 would be.
FNUZ = gfloat.FormatInfo(
    "e4m3fnuz", 8, 4, bias=8, is_signed=True, domain=gfloat.Domain.Finite, has_nz=False, num_high_nans=0,
    has_subnormals=True, is_twos_complement=False,
)  # fmt: skip
INDEPENDENT = {
    E4M3: (ml_dtypes.float8_e4m3fn, gfloat.formats.format_info_ocp_e4m3),
    E5M2: (ml_dtypes.float8_e5m2, gfloat.formats.format_info_ocp_e5m2),
    E4M3FNUZ: (ml_dtypes.float8_e4m3fnuz, FNUZ),
}
EACH = pytest.mark.parametrize("element", list(INDEPENDENT), ids=lambda e: e.name)


def every_code(element):
    codes = torch.arange(256, dtype=torch.uint8)
    numbers = codes.numpy().view(INDEPENDENT[element][0]).astype(np.float32)
    return codes, torch.from_numpy(numbers)


def rounded(numbers, element):
    return round_to_grid_(torch.as_tensor(numbers, dtype=torch.float32).clone(), element)


@EACH
def test_every_code_stands_for_the_same_number(element):
    codes, numbers = every_code(element)
    ours = float8_values(codes.view(element.dtype))
    assert torch.equal(ours.isnan(), numbers.isnan())
    assert torch.equal(ours.nan_to_num(0, -1, 1), numbers.nan_to_num(0, -1, 1))
    finite = numbers[numbers.isfinite()]
    assert finite.max() == element.largest
    other = INDEPENDENT[element][1]
    theirs = torch.tensor([gfloat.decode_float(other, int(c)).fval for c in codes], dtype=torch.float32)
    assert torch.equal(theirs.isnan(), ours.isnan())
    assert torch.equal(theirs.nan_to_num(0, -1, 1), ours.nan_to_num(0, -1, 1))


@EACH
def test_every_number_rounds_to_itself_and_casts_to_its_code(element):
    codes, numbers = every_code(element)
    finite = numbers.isfinite()
    kept = rounded(numbers[finite], element)
    assert torch.equal(kept, numbers[finite])
    back = codes_of_(kept.clone(), element).view(torch.uint8)
    negative_zero = (numbers[finite] == 0) & (codes[finite] != 0)
    assert torch.equal(back[~negative_zero], codes[finite][~negative_zero])
    assert (back[negative_zero] == 0).all()  # -0 has no place among codes


def neighbours(element):
    _, numbers = every_code(element)
    grid = numbers[numbers.isfinite()].double().unique()
    return grid[:-1], grid[1:]


@EACH
def test_midpoints_and_their_neighbours(element):
    """Halves go to the number whose code is even; a float32 step to either side of a half decides alone."""
    low, high = neighbours(element)
    middle = ((low + high) / 2).float()
    assert torch.equal(middle.double(), (low + high) / 2)  # float32 holds every one of them
    below = torch.nextafter(middle, torch.tensor(-torch.inf))
    above = torch.nextafter(middle, torch.tensor(torch.inf))
    assert torch.equal(rounded(below, element).double(), low)
    assert torch.equal(rounded(above, element).double(), high)
    at = rounded(middle, element)
    dtype, other = INDEPENDENT[element]
    assert torch.equal(at, torch.from_numpy(middle.numpy().astype(dtype).astype(np.float32)))
    assert at.tolist() == [gfloat.round_float(other, float(m)) for m in middle]


@EACH
def test_random_numbers_of_all_sizes(element):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(200_000, generator=draw) * 2.0 ** torch.randint(-30, 10, (200_000,), generator=draw)
    x = x[x.abs() <= element.largest]
    theirs = torch.from_numpy(x.numpy().astype(INDEPENDENT[element][0]).astype(np.float32))
    assert torch.equal(rounded(x, element), theirs)


@EACH
def test_beyond_the_largest_number(element):
    """Ours is clamped before it is rounded. Past half a step, ml_dtypes gives NaN (e4m3) or infinity (e5m2), and torch
    2.13 saturates e4m3: what a cast does there is nobody's promise, so no cast of ours goes there."""
    beyond = torch.tensor([element.largest * f for f in (1.01, 1.05, 1.2, 100.0, 1e30)])
    assert (rounded(beyond, element) == element.largest).all()
    assert (rounded(-beyond, element) == -element.largest).all()
    assert not np.isfinite(beyond.numpy()[2:].astype(INDEPENDENT[element][0]).astype(np.float32)).any()
    assert rounded([float("inf")], element).item() == element.largest


def test_torch_saturates_where_ml_dtypes_gives_nan():
    """The disagreement this family keeps out of, as it is in the versions that are tested."""
    x = torch.tensor([465.0])
    assert x.to(torch.float8_e4m3fn).float().item() == 448.0
    assert np.isnan(x.numpy().astype(ml_dtypes.float8_e4m3fn).astype(np.float32)).all()


@EACH
def test_the_spacing_at_a_number(element):
    low, high = neighbours(element)
    positive = low >= 0
    inside = ((low + high) / 2)[positive].float()
    assert torch.equal(steps_at(inside, element).double(), (high - low)[positive])
    assert torch.equal(steps_at(-inside, element), steps_at(inside, element))
    top = (high - low)[-1]
    assert (steps_at(torch.tensor([element.largest, 2 * element.largest, 1e30]), element) == top).all()


def test_scratch_memory_makes_no_difference():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 300
    assert torch.equal(round_to_grid_(x.clone(), E4M3), round_to_grid_(x.clone(), E4M3, torch.empty_like(x)))
    assert torch.equal(steps_at(x, E4M3), steps_at(x, E4M3, torch.empty_like(x)))
