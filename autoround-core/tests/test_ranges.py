# SPDX-License-Identifier: Apache-2.0
"""The ranges of groups, of all shapes and sizes that groups have."""

import pytest
import torch

from auto_round.data_type import ranges
from auto_round.data_type.grouping import group_count, reshape_pad_tensor_by_group_size


@pytest.mark.parametrize("chunk", [7, 1 << 18])
@pytest.mark.parametrize("group_size", [0, -1, 5, 16, 100, (3, 8), (4, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_ranges_of_groups(monkeypatch, dtype, group_size, chunk):
    monkeypatch.setattr(ranges, "CHUNK", chunk)
    tensor = torch.randn(12, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    tensor[0], tensor[5] = 2.0, -2.0
    low, high = ranges.group_ranges(tensor, group_size)
    groups, _, _ = reshape_pad_tensor_by_group_size(tensor.float(), group_size)
    flat = groups.flatten(groups.dim() // 2)
    assert torch.equal(low, flat.min(-1).values.clamp(max=0))
    assert torch.equal(high, flat.max(-1).values.clamp(min=0))
    assert low.shape == high.shape == group_count((12, 40), group_size)
    assert low.dtype == high.dtype == torch.float32
