# SPDX-License-Identifier: Apache-2.0
"""Whole blocks against torchao and gguf; what is stored against what was computed."""

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torchao.prototype.mx_formats.config import ScaleCalculationMode
from torchao.prototype.mx_formats.constants import DTYPE_FP6_E2M3, DTYPE_FP6_E3M2
from torchao.prototype.mx_formats.mx_tensor import to_dtype, to_mx

import auto_round_mxfp.microscaling as family
from auto_round.errors import SchemeError
from auto_round.schemes import QuantizationScheme
from auto_round_mxfp.bits import pack_codes
from auto_round_mxfp.names import DATA_TYPES

TORCHAO = {
    "mx_fp4": torch.float4_e2m1fn_x2,
    "mx_fp6e2m3": DTYPE_FP6_E2M3,
    "mx_fp6e3m2": DTYPE_FP6_E3M2,
    "mx_fp8e4m3": torch.float8_e4m3fn,
    "mx_fp8e5m2": torch.float8_e5m2,
}


def scheme_of(name, bits, group_size=32):
    return QuantizationScheme(bits=bits, group_size=group_size, data_type=name)


def weights(rows=64, cols=256, seed=0):
    """Normal, spread over many sizes, with values that lie on ties and blocks of zeros."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, cols, generator=generator) * torch.logspace(-12, 12, rows).unsqueeze(-1)
    weight[1] = torch.randint(-24, 25, (cols,), generator=generator) / 4
    weight[2, :64] = 0
    return weight


@pytest.mark.parametrize("name", TORCHAO)
@pytest.mark.parametrize("mode", ["FLOOR", "RCEIL"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_are_those_of_torchao(name, mode, dtype):
    data_type = getattr(family, name if mode == "FLOOR" else f"{name}_rceil")
    weight = weights().to(dtype)
    codes = data_type.encode(weight, scheme_of(data_type.name, next(iter(data_type.elements))))
    scale, data = to_mx(weight, TORCHAO[name], 32, ScaleCalculationMode[mode])
    assert torch.equal(codes.tensors["scale"], scale.view(torch.uint8))
    theirs = to_dtype(data, scale, TORCHAO[name], 32, torch.float32)
    assert torch.equal(data_type.decode(codes).float(), theirs.to(dtype).float())


@pytest.mark.parametrize("rows", [64])
def test_blocks_are_those_of_gguf(rows):
    # gguf rounds a tie to the larger code; random float32 weights have none. Its scale is the floor rule's.
    weight = torch.randn(rows, 256, generator=torch.Generator().manual_seed(1))
    codes = family.mx_fp4.encode(weight, scheme_of("mx_fp4", 4))
    blocks = gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType.MXFP4).reshape(rows, 8, 17)
    np.testing.assert_array_equal(codes.tensors["scale"].numpy(), blocks[..., 0])
    # A byte there holds elements i and i + 16 of a block, and may say minus zero.
    low, high = blocks[..., 1:] & 15, blocks[..., 1:] >> 4
    theirs = np.concatenate([low, high], -1).reshape(rows, 256)
    np.testing.assert_array_equal(codes.tensors["codes"].numpy(), np.where(theirs == 8, 0, theirs))
    values = gguf.quants.dequantize(blocks.reshape(rows, -1), gguf.GGMLQuantizationType.MXFP4)
    np.testing.assert_array_equal(family.mx_fp4.decode(codes).numpy(), values)


@pytest.mark.parametrize("name", DATA_TYPES)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_what_is_stored_is_what_was_computed(name, data):
    data_type = getattr(family, name)
    bits = data.draw(st.sampled_from(sorted(data_type.elements)))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    rows, cols = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 100))
    group_size = data.draw(st.sampled_from([32, 16, -1, 0]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    weight = (torch.randn(rows, cols, generator=generator) * 10.0 ** data.draw(st.integers(-9, 4))).to(dtype)
    weight[:, : data.draw(st.integers(0, cols))] = 0
    scheme = scheme_of(name, bits, group_size)
    exponents = data_type.quant_tensor(weight, bits, group_size)[1]
    offers = {}
    if data.draw(st.booleans()):
        offers["init_scale"] = data_type.search(weight, scheme, imatrix=None, scale_dtype=torch.float16)["init_scale"]
    if data.draw(st.booleans()):
        padded = weight.numel() if group_size in (0, -1) else rows * -(-cols // group_size) * group_size
        padded = rows * cols if group_size > 0 and cols < group_size else padded
        offers["v"] = torch.rand(len(exponents), padded // len(exponents), generator=generator) - 0.5
        offers["max_scale"] = torch.rand(len(exponents), generator=generator)
    codes = data_type.encode(weight, scheme, **offers)
    decoded = data_type.decode(codes)
    rounded = data_type.quant_tensor(weight, bits, group_size, **offers)[0]
    assert decoded.dtype == dtype
    assert torch.equal(decoded, rounded)
    assert torch.equal(decoded.signbit(), rounded.signbit())
    assert int(codes.tensors["codes"].max()) < 1 << bits
    assert int(codes.tensors["scale"].max()) < 255


def test_ranges_that_are_known_change_nothing():
    weight = weights()
    blocks = weight.reshape(-1, 32)
    low, high = blocks.amin(-1).clamp(max=0), blocks.amax(-1).clamp(min=0)
    plain = family.mx_fp4.quant_tensor(weight)
    told = family.mx_fp4.quant_tensor(weight, tensor_min=low, tensor_max=high)
    assert torch.equal(plain[0], told[0])
    assert torch.equal(plain[1], told[1])
    # A single range, as activations that were observed have it, is everybody's.
    shared = family.mx_fp4.quant_tensor(weight[20:24], tensor_min=torch.tensor(-6.0), tensor_max=torch.tensor(4.0))
    assert (shared[1] == 0).all()


def test_activations_have_any_shape():
    x = torch.randn(2, 3, 5, 64, generator=torch.Generator().manual_seed(0), dtype=torch.bfloat16)
    rounded, exponents, _ = family.mx_fp8.quant_tensor(x, 8, 32)
    assert rounded.shape == x.shape
    assert rounded.dtype == x.dtype
    assert exponents.shape == (2 * 3 * 5 * 2, 1)
    assert torch.equal(rounded[1, 2], family.mx_fp8.quant_tensor(x[1, 2], 8, 32)[0])


def test_seven_and_a_quarter_is_cut_off_and_more_is_not():
    block = torch.zeros(3, 32)
    block[:, 0] = torch.tensor([6.0, 7.25, 7.26])
    floor, ceil, v2 = (getattr(family, name) for name in ("mx_fp4", "mx_fp4_rceil", "mx_fp4_rceil_v2"))
    assert floor.quant_tensor(block)[1].flatten().tolist() == [0, 0, 0]
    assert ceil.quant_tensor(block)[1].flatten().tolist() == [0, 1, 1]
    assert v2.quant_tensor(block)[1].flatten().tolist() == [0, 0, 1]
    assert v2.quant_tensor(block)[0][:, 0].tolist() == [6, 6, 8]


def test_a_name_of_several_widths_asks_for_bits():
    x = weights()
    for bits, name in {4: "mx_fp4_rceil", 6: "mx_fp6_rceil", 8: "mx_fp8_rceil"}.items():
        assert torch.equal(family.mx_fp_rceil.quant_tensor(x, bits)[0], getattr(family, name).quant_tensor(x)[0])
    with pytest.raises(SchemeError, match="mx_fp_rceil has 4 or 6 or 8 bits, not None"):
        family.mx_fp_rceil.quant_tensor(x)
    with pytest.raises(SchemeError, match="mx_fp4 has 4 bits, not 8"):
        family.mx_fp4.quant_tensor(x, 8)


def test_what_it_does_not_take():
    supports = family.mx_fp4.supports
    assert supports(scheme_of("mx_fp4", 4), (8, 40)) is None
    assert supports(scheme_of("mx_fp4", 8), (8, 64)) == "mx_fp4 has 4 bits, not 8"
    assert "no zero point" in supports(scheme_of("mx_fp4", 4).replace(sym=False), (8, 64))
    assert "blocks along a row" in supports(scheme_of("mx_fp4", 4, (8, 8)), (8, 64))
    with pytest.raises(TypeError, match="takes no 'vv'"):
        family.mx_fp4.encode(weights(), scheme_of("mx_fp4", 4), vv=0)


def test_one_block_by_hand():
    # OCP MX 1.0, 6.3: the largest magnitude 5 has exponent 2, as e2m1 has, so the scale is one.
    block = torch.tensor([[5.0, -2.5, 1.25, 0.25, 0.26, -0.75, 3.5, 0.0] * 4])
    codes = family.mx_fp4.encode(block, scheme_of("mx_fp4", 4))
    assert codes.tensors["scale"].tolist() == [[127]]
    # Ties to even codes: 5 -> 4, -2.5 -> -2, 1.25 -> 1, 0.25 -> 0, -0.75 -> -1, 3.5 -> 4.
    assert codes.tensors["codes"][0, :8].tolist() == [6, 12, 2, 0, 1, 10, 6, 0]
    assert pack_codes(codes.tensors["codes"], 4)[0, :4].tolist() == [0xC6, 0x02, 0xA1, 0x06]
    assert family.mx_fp4.bits_per_weight(scheme_of("mx_fp4", 4), (1, 32)) == 4.25
