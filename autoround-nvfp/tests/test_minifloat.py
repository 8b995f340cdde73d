# SPDX-License-Identifier: Apache-2.0
"""The small floats against two libraries that know them: ml_dtypes and gfloat."""

import gfloat
import ml_dtypes
import numpy as np
import pytest
import torch
from gfloat.formats import format_info_ocp_e2m1, format_info_ocp_e4m3

from auto_round_nvfp.minifloat import E4M3, UE5M3, e2m1_codes, e2m1_values, round_e2m1_

FINE = torch.cat([torch.arange(-7, 7, 2**-7), torch.randn(5000, generator=torch.Generator().manual_seed(0)) * 3])
NEAR_TIES = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
EDGES = torch.cat([NEAR_TIES, torch.nextafter(NEAR_TIES, NEAR_TIES + 1), torch.nextafter(NEAR_TIES, NEAR_TIES - 1)])
UE5M3_INFO = gfloat.FormatInfo(
    "ue5m3", 8, 4, bias=15, is_signed=False, domain=gfloat.Domain.Finite, has_nz=False, num_high_nans=1,
    has_subnormals=True, is_twos_complement=False,
)  # fmt: skip


def elements(x):
    return round_e2m1_(x.clamp(-6, 6))


def test_elements_are_those_of_two_libraries():
    x = torch.cat([FINE, EDGES, -EDGES, torch.tensor([1e30, -1e30, float("inf"), 1e-30, 0.0, -0.0])])
    theirs = x.clamp(-6, 6).numpy().astype(ml_dtypes.float4_e2m1fn)
    assert torch.equal(elements(x), torch.from_numpy(theirs.astype(np.float32)))
    rounded = gfloat.round_ndarray(format_info_ocp_e2m1, x.double().numpy(), sat=True)
    assert torch.equal(elements(x), torch.from_numpy(rounded).float())
    # Ours has one zero; theirs keep the sign of what was rounded.
    codes = torch.from_numpy(theirs.view(np.uint8).copy())
    for of in (elements(x), x.clamp(-6, 6)):
        assert torch.equal(e2m1_codes(of), torch.where(codes == 8, 0, codes))


def test_element_codes_are_those_of_two_libraries():
    codes = torch.arange(16, dtype=torch.uint8)
    values = e2m1_values(codes)
    assert torch.equal(values, torch.from_numpy(codes.numpy().view(ml_dtypes.float4_e2m1fn).astype(np.float32)))
    assert values.tolist() == [gfloat.decode_float(format_info_ocp_e2m1, code).fval for code in range(16)]
    assert torch.signbit(values[8])
    assert torch.equal(e2m1_codes(values + 0.0), torch.where(codes == 8, 0, codes))  # which makes -0.0 0.0
    assert not torch.signbit(elements(torch.tensor([-0.1, -0.0]))).any()


@pytest.mark.parametrize("scale_format", [E4M3, UE5M3], ids=lambda f: f.name)
def test_scales_are_those_of_gfloat(scale_format):
    info = format_info_ocp_e4m3 if scale_format is E4M3 else UE5M3_INFO
    last = 0x7E if scale_format is E4M3 else 0xFE
    codes = torch.arange(last + 1, dtype=torch.uint8)
    values = scale_format.load(codes.view(scale_format.dtype))
    assert values.tolist() == [gfloat.decode_float(info, code).fval for code in range(last + 1)]
    assert values[-1] == scale_format.largest
    assert torch.equal(scale_format.store(values).view(torch.uint8), codes)
    draw = torch.Generator().manual_seed(1)
    between = (values[1:] + values[:-1]) / 2
    x = torch.cat([
        between, torch.nextafter(between, between + 1), torch.nextafter(between, between * 0),
        torch.rand(3000, generator=draw) * 2 * scale_format.largest,
        torch.exp2(torch.rand(3000, generator=draw) * 40 - 20), torch.tensor([1e-30, 3e38, 0.0]),
    ])  # fmt: skip
    theirs = gfloat.round_ndarray(info, x.double().numpy(), sat=True)
    assert torch.equal(scale_format.load(scale_format.store(x)), torch.from_numpy(theirs).float())


def test_e4m3_is_that_of_ml_dtypes():
    x = torch.exp2(torch.rand(5000, generator=torch.Generator().manual_seed(2)) * 19 - 11).clamp(max=448)
    assert (E4M3.store(x).view(torch.uint8).numpy() == x.numpy().astype(ml_dtypes.float8_e4m3fn).view(np.uint8)).all()


def test_ue5m3_by_hand():
    assert UE5M3.load(torch.tensor([0, 1, 7, 8, 120, 254], dtype=torch.uint8)).tolist() == [
        0.0, 2**-17, 7 * 2**-17, 2**-14, 1.0, 114688.0,
    ]  # fmt: skip
    assert UE5M3.load(torch.tensor([255], dtype=torch.uint8)).isnan().all()
    assert UE5M3.store(torch.tensor([-1.0, 1e9, 1.0625, 1.1875])).tolist() == [0, 254, 120, 122]


@pytest.mark.parametrize("scale_format", [E4M3, UE5M3], ids=lambda f: f.name)
def test_neighbouring_codes_are_neighbouring_values(scale_format):
    values = scale_format.values(torch.arange(-3, 300))
    assert (values[:4] == 0).all()
    assert (values[-40:] == scale_format.largest).all()
    assert (values.diff() >= 0).all()
    assert torch.equal(scale_format.codes(values).unique(), torch.arange(scale_format.codes(values).max() + 1).int())
