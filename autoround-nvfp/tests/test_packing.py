# SPDX-License-Identifier: Apache-2.0
"""The packed layouts: bytes worked out by hand, and against compressed-tensors and torchao."""

import warnings

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme as CompressedScheme
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES
from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

import auto_round_nvfp
from auto_round import Codes
from auto_round.errors import ContractError
from auto_round_nvfp import packing_compressed
from auto_round_nvfp.nvfp import NvFp4, NvFp4StaticGlobalScale, NvFp4V2
from auto_round_nvfp.packing import PackedNvFp4, PackedNvFp4E5M3
from auto_round_nvfp.packing_compressed import CompressedNvFp4

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of torchao's own sources, when Python compiles them for the first time
    from torchao.prototype.mx_formats.nvfp4_tensor import nvfp4_quantize

SCHEMES = {name: scheme.resolved() for name, scheme in auto_round_nvfp.schemes().items()}
PACKINGS = [
    (NvFp4(), PackedNvFp4(), "NVFP4A16"),
    (NvFp4(), CompressedNvFp4(), "NVFP4A16"),
    (NvFp4(), PackedNvFp4(), "NVFP4"),
    (NvFp4(), CompressedNvFp4(), "NVFP4"),
    (NvFp4V2(), PackedNvFp4E5M3(), "NVFP4_E5M3"),
]
EACH = pytest.mark.parametrize(
    ("data_type", "packing", "name"), PACKINGS, ids=[f"{p.format}-{name}" for _, p, name in PACKINGS]
)


def frozen(codes):
    """Codes as core completes them where activations are static."""
    scale = NvFp4StaticGlobalScale().freeze(torch.tensor(-3.0), torch.tensor(2.0), codes.scheme)["global_scale"]
    return Codes(
        codes.data_type, codes.scheme, codes.shape, codes.dtype, {**codes.tensors, "input_global_scale": scale}
    )


@EACH
def test_round_trips_are_exact(data_type, packing, name, normal):
    scheme, shape = SCHEMES[name], (24, 64)
    codes = data_type.encode(normal(*shape).bfloat16(), scheme)
    if name == "NVFP4":
        codes = frozen(codes)
    assert packing.refuses(data_type.name, scheme, shape) is None
    tensors = packing.pack(codes)
    assert {n: (tuple(t.shape), t.dtype) for n, t in tensors.items()} == packing.layout(scheme, shape)
    assert all(t.is_contiguous() for t in tensors.values())
    back = packing.unpack(tensors, data_type.name, scheme, shape, torch.bfloat16)
    assert back.tensors.keys() == codes.tensors.keys()
    for n, tensor in codes.tensors.items():
        assert back.tensors[n].dtype == tensor.dtype
        assert torch.equal(back.tensors[n].view(torch.uint8), tensor.view(torch.uint8))
    assert torch.equal(data_type.decode(back), data_type.decode(codes))


@pytest.mark.parametrize("packing", [PackedNvFp4(), CompressedNvFp4()], ids=lambda p: p.format)
def test_bytes_by_hand(packing):
    weight = torch.tensor([[1.0, 6.0, -0.5, 0.0, -6.0, 2.0, 3.0, 4.0] * 2])
    tensors = packing.pack(NvFp4().encode(weight, SCHEMES["NVFP4A16"]))
    assert tensors["weight_packed"].tolist() == [[0x72, 0x09, 0x4F, 0x65] * 2]  # the first in the low four bits
    assert tensors["weight_scale"].view(torch.uint8).tolist() == [[0x7E]]  # 448
    assert tensors["weight_global_scale"].tolist() == [448.0]


def test_ue5m3_bytes_by_hand():
    tensors = PackedNvFp4E5M3().pack(NvFp4V2().encode(torch.full((1, 16), 12.0), SCHEMES["NVFP4_E5M3"]))
    assert tensors["weight_packed"].tolist() == [[0x77] * 8]
    assert tensors["weight_scale"].tolist() == [[(16 << 3)]]  # 2.0: exponent 1 + 15, mantissa 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_compressed_tensors_packs_the_same_bytes_and_decodes_to_what_was_tuned(normal, dtype):
    weight, scheme = (normal(32, 64) * 0.02).to(dtype), SCHEMES["NVFP4A16"]
    weight[3, 16:32] = 0
    codes = NvFp4().encode(weight, scheme)
    ours, theirs = PackedNvFp4().pack(codes), CompressedNvFp4().pack(codes)
    assert all(torch.equal(ours[name].view(torch.uint8), theirs[name].view(torch.uint8)) for name in ours)
    compressor = BaseCompressor.get_value_from_registry("nvfp4-pack-quantized")
    described = CompressedNvFp4().describe("nv_fp4", scheme)
    back = compressor.decompress(dict(theirs), CompressedScheme(targets=["Linear"], **described))["weight"]
    # The library decodes to bfloat16, whatever was stored.
    assert torch.equal(back, NvFp4().decode(codes).to(torch.bfloat16))
    if dtype == torch.bfloat16:
        assert torch.equal(back, NvFp4().quant_tensor(weight)[0])


@pytest.mark.parametrize("name", ["NVFP4A16", "NVFP4"])
def test_the_config_group_is_the_library_s_own_scheme(name):
    described, preset = CompressedNvFp4().describe("nv_fp4", SCHEMES[name]), PRESET_SCHEMES[name]
    assert described["format"] == "nvfp4-pack-quantized"
    assert described.keys() - {"format"} == preset.keys()
    for part, arguments in preset.items():
        assert QuantizationArgs(**described[part]) == arguments


def test_torchao_makes_the_same_codes(normal):
    weight = normal(64, 128)
    codes = NvFp4().encode(weight, SCHEMES["NVFP4A16"])
    packed = PackedNvFp4().pack(codes)
    scale, data = nvfp4_quantize(weight, per_tensor_scale=1 / packed["weight_global_scale"])
    assert torch.equal(scale.view(torch.uint8).reshape(64, 8), packed["weight_scale"].view(torch.uint8))
    # It keeps the sign of a zero, and multiplies by a reciprocal, which can move a weight across a tie.
    theirs = torch.stack((data & 0xF, data >> 4), -1).flatten(1)
    theirs = torch.where(theirs == 8, 0, theirs)
    assert (theirs != codes.tensors["codes"]).float().mean() < 1e-3


def test_activations_are_those_of_compressed_tensors(normal):
    arguments, scale = PRESET_SCHEMES["NVFP4"]["input_activations"], torch.tensor([600.0])

    def theirs(x):
        block, zero_point = compute_dynamic_scales_and_zp(x, arguments, None, global_scale=scale)
        return fake_quantize(x, block, zero_point, arguments, global_scale=scale)

    x = normal(2, 7, 64)
    x[0, 0, :16] = 0
    ours = NvFp4StaticGlobalScale().quant_tensor(x, 16, global_scale=scale)[0]
    assert torch.equal(ours, theirs(x))
    # In bfloat16 the library rounds A / 6 to eight bits first, which moves some block scales by one step of theirs;
    # on GPUs, and here, it stays float32.
    narrow = x.bfloat16()
    ours = NvFp4StaticGlobalScale().quant_tensor(narrow, 16, global_scale=scale)[0]
    differs = (ours != theirs(narrow)).view(-1, 16).any(-1).float().mean()
    assert differs < 0.1


def test_what_a_layout_cannot_hold_is_said(monkeypatch):
    scheme, compressed = SCHEMES["NVFP4A16"], CompressedNvFp4()
    assert "not nvfp4_v2" in PackedNvFp4().refuses("nvfp4_v2", scheme, (8, 32))
    assert "blocks of 16, not 32" in PackedNvFp4().refuses("nv_fp4", scheme.replace(group_size=32), (8, 64))
    assert "whole blocks" in PackedNvFp4().refuses("nv_fp4", scheme, (8, 40))
    assert PackedNvFp4E5M3().refuses("nvfp4_v2", scheme.replace(group_size=32), (8, 64)) is None
    dynamic = SCHEMES["NVFP4"].replace(act_data_type="nvfp4_v2")
    assert "takes activations in nv_fp4_with_static_gs" in compressed.refuses("nv_fp4", dynamic, (8, 32))
    dynamic = SCHEMES["NVFP4"].replace(act_dynamic=True)
    assert "set act_dynamic to False" in PackedNvFp4().refuses("nv_fp4", dynamic, (8, 32))
    monkeypatch.setattr(packing_compressed.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'autoround-nvfp[llm_compressor]'" in compressed.refuses("nv_fp4", scheme, (8, 32))
    codes = NvFp4().encode(torch.ones(8, 32), SCHEMES["NVFP4"])
    with pytest.raises(ContractError, match="was not fixed"):
        PackedNvFp4().pack(codes)
