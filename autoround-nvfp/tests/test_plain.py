# SPDX-License-Identifier: Apache-2.0
"""Rounding with nothing learnt against rounding with offsets of zero, which goes another way, bit for bit."""

import pytest
import torch

from auto_round_nvfp import rounding
from auto_round_nvfp.minifloat import E4M3, UE5M3
from auto_round_nvfp.nvfp import NvFp4, NvFp4V2, NvFp4V2GlobalScale

# Block scales of usual size; least ones, far too small or zero, that cut off; ones that saturate; all at once.
SIZES = {"usual": (-1, 1), "least": (-7, -5), "largest": (3, 5), "all": (-9, 6)}


@pytest.mark.parametrize("data_type", [NvFp4(), NvFp4V2(), NvFp4V2GlobalScale()], ids=lambda d: d.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
def test_both_ways_round_alike(data_type, dtype, size, normal):
    weight = normal(96, 64) * torch.logspace(*SIZES[size], 96).unsqueeze(1)
    weight[7] = 0
    weight[8] = -0.0
    weight = weight.to(dtype)
    given = {"global_scale": torch.tensor(1000.0)} if data_type.block_scale.two_levels else {}
    found, scale, _ = data_type.quant_tensor(weight, **given)
    wanted, same, _ = data_type.quant_tensor(weight, v=torch.zeros(weight.numel() // 16, 16), **given)
    assert torch.equal(found, wanted)
    assert torch.equal(found.signbit(), wanted.signbit())
    assert torch.equal(scale, same)


@pytest.mark.parametrize("data_type", [NvFp4(), NvFp4V2()], ids=lambda d: d.name)
def test_one_range_serves_all_blocks_of_all_chunks(data_type, normal, monkeypatch):
    monkeypatch.setattr(rounding, "CHUNK", 1024)
    weight = normal(96, 64).bfloat16()
    low, high = torch.tensor(-0.3), torch.tensor(0.4)
    found, scale, _ = data_type.quant_tensor(weight, tensor_min=low, tensor_max=high)
    each = {"tensor_min": low.expand(384), "tensor_max": high.expand(384)}
    wanted, same, _ = data_type.quant_tensor(weight, v=torch.zeros(384, 16), **each)
    assert torch.equal(found, wanted)
    assert torch.equal(scale.expand(384, 1), same)


@pytest.mark.parametrize("scale_format", [E4M3, UE5M3], ids=lambda f: f.name)
def test_scales_are_rounded_to_what_is_stored(scale_format):
    draw = torch.Generator().manual_seed(0)
    scales = torch.cat([torch.rand(4000, generator=draw).mul(60).sub(40).exp2(), torch.tensor([0.0, 1e30])])
    assert torch.equal(scale_format.rounded(scales), scale_format.load(scale_format.store(scales)))
