# SPDX-License-Identifier: Apache-2.0
"""Packings: exact, as wide as they say, and what compressed-tensors writes and reads."""

import sys

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.mxfp6.helpers import pack_fp6_to_uint8
from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8
from compressed_tensors.quantization import QuantizationScheme as TheirScheme
from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme

import auto_round_mxfp
import auto_round_mxfp.microscaling as family
from auto_round.errors import PluginError
from auto_round.hookspecs import LazyPacking
from auto_round.schemes import QuantizationScheme
from auto_round_mxfp.bits import pack_codes, unpack_codes
from auto_round_mxfp.elements import E2M1, E2M3, element_values
from auto_round_mxfp.names import DATA_TYPES
from auto_round_mxfp.rounding import values_of

SHAPE = (24, 96)


def packings():
    return [record.load() for record in auto_round_mxfp.exporters() if isinstance(record, LazyPacking)]


def packing(name):
    return next(p for p in packings() if p.name == name)


def scheme_of(name, bits, **fields):
    return QuantizationScheme(bits=bits, group_size=32, data_type=name, **fields)


def encoded(name, bits, dtype=torch.bfloat16):
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) * torch.logspace(-9, 9, 24).unsqueeze(-1)
    return getattr(family, name).encode(weight.to(dtype), scheme_of(name, bits))


@pytest.mark.parametrize("bits", [2, 4, 6])
def test_bits_are_a_little_endian_stream(bits):
    codes = torch.randint(0, 1 << bits, (3, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    stream = pack_codes(codes, bits)
    for row, packed in zip(codes.tolist(), stream.tolist(), strict=True):
        number = sum(code << (bits * i) for i, code in enumerate(row))
        assert bytes(packed) == number.to_bytes(32 * bits // 8, "little")
    assert torch.equal(unpack_codes(stream, bits), codes)
    assert torch.equal(pack_codes(codes.t().contiguous().t(), bits), stream)


@pytest.mark.parametrize("name", DATA_TYPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_unpacking_gives_the_codes_back(name, dtype):
    for bits in getattr(family, name).elements:
        codes = encoded(name, bits, dtype)
        fitting = [p for p in packings() if p.refuses(name, codes.scheme, SHAPE) is None]
        assert sum(p.format == "auto_round" for p in fitting) == 1
        for found in fitting:
            packed = found.pack(codes)
            assert {n: (tuple(t.shape), t.dtype) for n, t in packed.items()} == found.layout(codes.scheme, SHAPE)
            stored = sum(t.nbytes for t in packed.values()) * 8 / (SHAPE[0] * SHAPE[1])
            assert stored == getattr(family, name).bits_per_weight(codes.scheme, SHAPE)
            back = found.unpack(packed, name, codes.scheme, SHAPE, dtype)
            assert back.dtype == dtype
            assert all(torch.equal(back.tensors[n], t) for n, t in codes.tensors.items())


def test_four_bit_whole_numbers_are_sign_and_magnitude_in_files():
    block = torch.zeros(1, 32)
    block[0, :4] = torch.tensor([1.75, -1.75, 0.25, -0.25])
    packed = packing("auto_round:mx_int").pack(family.mx_int4.encode(block, scheme_of("mx_int4", 4)))
    assert packed["weight_packed"][0, :2].tolist() == [0xF7, 0x91]


@pytest.mark.parametrize(("element", "pack"), [(E2M1, pack_fp4_to_uint8), (E2M3, pack_fp6_to_uint8)])
def test_our_streams_are_those_of_compressed_tensors(element, pack):
    codes = torch.randint(0, 1 << element.bits, SHAPE, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    values = values_of(codes, element)
    assert len(element_values(element)) == 1 << element.bits
    assert torch.equal(pack(values.bfloat16()), pack_codes(codes, element.bits))


@pytest.mark.parametrize(
    ("name", "bits", "stored"),
    [
        ("mx_fp4", 4, "mxfp4-pack-quantized"),
        ("mx_fp4_rceil_v2", 4, "mxfp4-pack-quantized"),
        ("mx_fp6", 6, "mxfp6-pack-quantized"),
        ("mx_fp8", 8, "mxfp8-quantized"),
        ("mx_fp_rceil", 8, "mxfp8-quantized"),
    ],
)
def test_compressed_tensors_reads_the_weight_that_was_encoded(name, bits, stored):
    codes, found = encoded(name, bits), packing(stored)
    group = {**found.describe(name, codes.scheme), "targets": ["Linear"]}
    described = TheirScheme.model_validate(group)
    state = BaseCompressor.get_value_from_registry(stored).decompress(dict(found.pack(codes)), described)
    wanted = getattr(family, name).decode(codes)
    assert torch.equal(state["weight"].to(wanted.dtype), wanted)


@pytest.mark.parametrize(
    ("preset", "stored", "scheme"),
    [
        ("MXFP4A16", "mxfp4-pack-quantized", "MXFP4A16"),
        ("MXFP4", "mxfp4-pack-quantized", "MXFP4"),
        ("MXFP4", "mxfp4-pack-quantized", "MXFP4_RCEIL"),
        ("MXFP6A16", "mxfp6-pack-quantized", "MXFP6A16"),
        ("MXFP8A16", "mxfp8-quantized", "MXFP8A16"),
        ("MXFP8", "mxfp8-quantized", "MXFP8"),
    ],
)
def test_words_are_those_of_the_library_s_own_presets(preset, stored, scheme):
    ours = auto_round_mxfp.schemes()[scheme].resolved()
    found = packing(stored)
    name = f"{ours.data_type}{ours.bits}"
    assert found.refuses(name, ours, (64, 64)) is None
    group = {**found.describe(name, ours), "targets": ["Linear"]}
    theirs = preset_name_to_scheme(preset, ["Linear"])
    described = TheirScheme.model_validate(group)
    assert described.weights == theirs.weights
    assert described.input_activations == theirs.input_activations


def test_what_is_refused_says_why():
    plain, compressed = packing("auto_round:mx_fp"), packing("mxfp4-pack-quantized")
    scheme = scheme_of("mx_fp", 4)
    assert "not int_sym with 4 bits" in plain.refuses("int_sym", scheme, (64, 64))
    assert "blocks of 32, not of 16" in plain.refuses("mx_fp4", scheme.replace(group_size=16), (64, 64))
    assert "multiple of 32, not 40" in plain.refuses("mx_fp4", scheme, (64, 40))
    static = scheme.replace(act_bits=4, act_dynamic=False).resolved()
    assert "static activation" in plain.refuses("mx_fp4", static, (64, 64))
    mixed = scheme.replace(act_bits=8, act_data_type="fp", act_group_size=32).resolved()
    assert "not fp with 8 bits" in compressed.refuses("mx_fp4", mixed, (64, 64))
    wide = scheme.replace(act_bits=8, act_data_type="mx_fp_rceil").resolved()
    assert compressed.refuses("mx_fp4", wide, (64, 64)) is None
    assert compressed.describe("mx_fp4", wide)["input_activations"]["num_bits"] == 8


def test_without_the_library_one_sentence_says_what_to_install(monkeypatch):
    codes = encoded("mx_fp4", 4)
    monkeypatch.setitem(sys.modules, "compressed_tensors.compressors.nvfp4.helpers", None)
    with pytest.raises(PluginError, match=r"pip install \"autoround-mxfp\[llm_compressor\]\"\.$"):
        packing("mxfp4-pack-quantized").pack(codes)
