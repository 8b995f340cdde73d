# SPDX-License-Identifier: Apache-2.0
"""One value among many that is no number is found, wherever it is."""

import math

import pytest
import torch

from auto_round.model.finite import not_finite

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_are_fine(dtype):
    assert not_finite(torch.randn(33, 65).to(dtype)) == 0
    assert not_finite(torch.full((3, 5), torch.finfo(dtype).max, dtype=dtype)) == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_that_is_not_is_found_wherever_it_is(dtype, value):
    if dtype == torch.float8_e4m3fn and math.isinf(value):
        pytest.skip("the dtype has no infinity")
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        tensor = torch.randn(33, 65, generator=generator).to(dtype)
        row, column = (int(torch.randint(n, (), generator=generator)) for n in (33, 65))
        tensor[row, column] = value
        assert not_finite(tensor) == not_finite(tensor.T) == 1


def test_nothing_and_whole_numbers_are_fine():
    assert not_finite(torch.empty(0, 3)) == 0
    assert not_finite(torch.ones(3, dtype=torch.int32)) == 0
