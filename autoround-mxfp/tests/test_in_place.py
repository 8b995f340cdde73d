# SPDX-License-Identifier: Apache-2.0
"""Rounding in units of the tensor, and all blocks at once, against rounding in units of scales, bit for bit."""

import pytest
import torch

import auto_round_mxfp.microscaling as family
from auto_round_mxfp.at_once import round_at_once
from auto_round_mxfp.blocks import Settings, rounded_blocks
from auto_round_mxfp.exponents import power_of_two
from auto_round_mxfp.in_place import round_in_place
from auto_round_mxfp.names import DATA_TYPES


def spread(dtype, low, high):
    """Blocks around every power of two in a range, signs mixed, values on the grid and halfway among them."""
    generator = torch.Generator().manual_seed(3)
    blocks = torch.randn(high - low, 32, generator=generator)
    blocks[:, :16] = (blocks[:, :16] * 8).round() / 8
    blocks[5, :] = 0
    blocks[6, :] = -0.0
    return (blocks * torch.exp2(torch.arange(low, high)).unsqueeze(1)).to(dtype)


def in_units_of_scales(groups, v, max_scale, settings):
    out = torch.empty_like(groups)
    for blocks in rounded_blocks(groups, v, max_scale, settings):
        out[blocks.rows] = blocks.elements.mul_(power_of_two(blocks.exponents).unsqueeze(-1))
    return out


@pytest.mark.parametrize("name", [n for n in DATA_TYPES if n != "mx_fp_rceil"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("learnt", [False, True])
@pytest.mark.parametrize("rounded", [round_in_place, round_at_once])
def test_both_ways_round_alike(name, dtype, learnt, rounded):
    data_type = getattr(family, name)
    settings = Settings(data_type.element(None), data_type.rule)
    groups = spread(dtype, -50, 50)
    generator = torch.Generator().manual_seed(4)
    v = torch.rand(groups.shape, generator=generator) - 0.5 if learnt else 0.0
    if learnt:
        groups[5:7] = 1.0  # offsets of blocks of zeros are left to the other way
    max_scale = torch.rand(len(groups), generator=generator) + 0.5 if learnt else 1.0
    found = rounded(groups, v, max_scale, settings)
    wanted = in_units_of_scales(groups, v, max_scale, settings)
    assert found is not None
    assert torch.equal(found[0], wanted)
    assert torch.equal(found[0].float().signbit(), wanted.float().signbit())


@pytest.mark.parametrize("offset", [0.0, 0.25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_all_at_once_with_a_searched_scale_and_one_offset(dtype, offset):
    groups = spread(dtype, -8, 8)
    start = torch.exp2(torch.arange(-8.0, 8.0)).unsqueeze(1)
    settings = Settings(family.mx_fp4.element(None), family.mx_fp4.rule, init_scale=start)
    factor = torch.rand(16, generator=torch.Generator().manual_seed(6)) + 0.5
    found, exponents, largest = round_at_once(groups, offset, factor, settings)
    assert torch.equal(found, in_units_of_scales(groups, offset, factor, settings))
    assert torch.equal(largest, groups.float().abs().amax(-1))
    assert exponents.dtype == torch.int32


@pytest.mark.parametrize("value", [1e-38, 1e38, float("nan"), float("inf")])
def test_what_float32_could_run_out_at_is_left_to_the_other_way(value):
    settings = Settings(family.mx_fp4.element(None), family.mx_fp4.rule)
    groups = torch.full((2, 32), 1.0)
    groups[1] = value
    assert round_in_place(groups, 0.0, 1.0, settings) is None
    rounded = family.mx_fp4.quant_tensor(groups)[0]
    torch.testing.assert_close(rounded[0], groups[0], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["mx_fp4", "mx_fp8", "mx_int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_without_anything_learnt_the_gradient_goes_straight_through(name, dtype):
    data_type = getattr(family, name)
    x = spread(dtype, -4, 4).requires_grad_()
    probe = torch.randn(x.shape, generator=torch.Generator().manual_seed(5)).to(dtype)
    rounded, exponents, _ = data_type.quant_tensor(x, max_scale=torch.ones(1))
    rounded.backward(probe)
    kept = x.detach().float().abs() <= torch.exp2(exponents) * data_type.element(None).max
    assert torch.equal(x.grad, torch.where(kept, probe, 0.0))
    assert not kept.all()
