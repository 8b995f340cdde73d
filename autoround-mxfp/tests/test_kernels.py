# SPDX-License-Identifier: Apache-2.0
"""Blocks of all sizes of numbers, rounded and encoded, against the specification's formula with other libraries' casts.

Everything but the exponents of blocks is compared to the last bit; those are tested by themselves in `test_exponents`.
"""

import ml_dtypes
import numpy as np
import pytest
import torch

import auto_round_mxfp.microscaling as family
from auto_round import QuantizationScheme
from auto_round_mxfp.names import DATA_TYPES

CASTS = {
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
}


def spread(dtype, low, high):
    """Blocks around every power of two in a range, signs mixed, values on the grid and halfway among them."""
    generator = torch.Generator().manual_seed(3)
    blocks = torch.randn(high - low, 32, generator=generator)
    blocks[:, :16] = (blocks[:, :16] * 8).round() / 8
    blocks[5, :] = 0
    blocks[6, :] = -0.0
    return (blocks * torch.exp2(torch.arange(low, high)).unsqueeze(1)).to(dtype)


def elements_by_casts(groups, exponents, v, element):
    """q, float32, and its codes: the formula in numpy."""
    x = groups.float().numpy() * np.exp2(-exponents.double().numpy()).astype(np.float32)
    x = np.clip(x + np.float32(v), -element.max, element.max)
    if element.whole:
        steps = np.rint(x * 2**element.mantissa_bits).astype(np.int32)
        return steps.astype(np.float32) / 2**element.mantissa_bits, steps & ((1 << element.bits) - 1)
    cast = x.astype(CASTS[element.name])
    values = cast.astype(np.float32)
    return values, np.where(values == 0, 0, cast.view(np.uint8))  # one zero


@pytest.mark.parametrize("name", [n for n in DATA_TYPES if n != "mx_fp_rceil"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("learnt", [False, True])
def test_rounded_and_encoded_blocks(name, dtype, learnt):
    data_type = getattr(family, name)
    element, groups = data_type.element(None), spread(dtype, -50, 50)
    generator = torch.Generator().manual_seed(4)
    learnt_v = torch.rand(groups.shape, generator=generator) - 0.5 if learnt else 0.0
    max_scale = torch.rand(len(groups), generator=generator) + 0.5 if learnt else 1.0
    rounded, exponents, _ = data_type.quant_tensor(groups, v=learnt_v, max_scale=max_scale)
    values, codes = elements_by_casts(groups, exponents, learnt_v, element)
    wanted = torch.from_numpy(values * np.exp2(exponents.double().numpy()).astype(np.float32))
    assert torch.equal(rounded, wanted.to(dtype))
    assert not rounded.signbit()[rounded == 0].any()
    stored = data_type.encode(groups, QuantizationScheme(element.bits, 32, True, name), v=learnt_v, max_scale=max_scale)
    assert torch.equal(stored.tensors["codes"], torch.from_numpy(codes.astype(np.uint8)))
    assert torch.equal(stored.tensors["scale"].int(), exponents.int() + 127)


@pytest.mark.parametrize("offset", [0.0, 0.25])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_searched_scale_and_one_offset(dtype, offset):
    groups = spread(dtype, -8, 8)
    start = torch.exp2(torch.arange(-8.0, 8.0)).unsqueeze(1)
    factor = torch.rand(16, generator=torch.Generator().manual_seed(6)) + 0.5
    rounded, exponents, _ = family.mx_fp4.quant_tensor(groups, v=offset, max_scale=factor, init_scale=start)
    values, _ = elements_by_casts(groups, exponents, offset, family.mx_fp4.element(None))
    assert rounded.dtype == dtype
    assert torch.equal(rounded.double(), torch.from_numpy(values).double() * torch.exp2(exponents.double()))


@pytest.mark.parametrize("value", [1e-38, 1e38, float("nan"), float("inf")])
def test_a_block_of_extremes_leaves_others_alone(value):
    groups = torch.full((2, 32), 1.0)
    groups[1] = value
    rounded = family.mx_fp4.quant_tensor(groups)[0]
    assert torch.equal(rounded[0], groups[0])
    assert torch.equal(rounded[1].isnan(), groups[1].isnan())


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
