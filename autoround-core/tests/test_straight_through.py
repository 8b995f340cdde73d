# SPDX-License-Identifier: Apache-2.0
"""The gradient of activations: there where nothing was cut off."""

import pytest
import torch

from auto_round.data_type.straight import straight_through


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_was_cut_off_has_none_and_the_largest_that_was_kept_has_one(dtype):
    groups = torch.tensor([[6.0, -6.0, 6.03125, -6.03125, 0.0, -0.0], [1e-3, -1.0, 5.0, 1e4, -1e4, 0.0]]).to(dtype)
    high = torch.tensor([[6.0], [float("inf")]])
    outer = torch.arange(1.0, 13.0).view(2, 6).neg().to(dtype)
    found = straight_through(outer, groups, high)
    wanted = outer.clone()
    wanted[0, 2:4] = 0
    assert torch.equal(found, wanted)
    assert found.dtype == dtype


def test_a_bound_between_two_bfloat16_lies_above_the_lower():
    groups = torch.tensor([[1.0, 1.0078125]], dtype=torch.bfloat16)
    outer = torch.ones_like(groups)
    assert straight_through(outer, groups, torch.tensor([[1.005]])).tolist() == [[1, 0]]
    assert straight_through(outer, groups.float(), torch.tensor([[1.005]])).tolist() == [[1, 0]]


def test_many_groups_and_none():
    groups = torch.randn(70, 1 << 13, generator=torch.Generator().manual_seed(0))
    found = straight_through(torch.ones_like(groups), groups, torch.ones(70, 1))
    assert torch.equal(found, (groups.abs() <= 1).float())
    assert straight_through(groups[:0], groups[:0], torch.ones(0, 1)).shape == (0, 1 << 13)
