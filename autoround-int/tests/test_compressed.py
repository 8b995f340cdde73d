# SPDX-License-Identifier: Apache-2.0
"""The layouts of compressed-tensors, decoded by that library: what it computes with is what was tuned, bit for bit."""

import itertools
import sys

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme as TheirScheme

from auto_round import QuantizationScheme
from auto_round.errors import ContractError, PluginError
from auto_round_int import schemes
from auto_round_int.asymmetric import IntAsym
from auto_round_int.packing_compressed import IntQuantized, PackQuantized
from auto_round_int.restricted import IntSymGptq
from auto_round_int.symmetric import IntSym

EACH = pytest.mark.parametrize("data_type", [IntSym(), IntAsym(), IntSymGptq()], ids=lambda d: d.name)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def scheme_of(data_type, bits, group_size):
    sym = data_type.name != "int_asym"
    return QuantizationScheme(bits, group_size, sym, data_type.name).resolved()


def weights(shape, dtype, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def decompressed(packing, codes):
    """What the library makes of packed tensors."""
    scheme = TheirScheme(targets=["Linear"], **packing.describe(codes.data_type, codes.scheme))
    compressor = BaseCompressor.get_value_from_registry(packing.name)
    tensors = dict(packing.pack(codes))
    assert set(compressor.compression_param_names(scheme)) == tensors.keys() or packing.name == "int-quantized"
    return compressor.decompress(tensors, scheme)["weight"]


def check_round_trip(packing, data_type, codes):
    tensors = packing.pack(codes)
    layout = packing.layout(codes.scheme, codes.shape)
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {name: shape for name, (shape, _) in layout.items()}
    for name, (_, dtype) in layout.items():
        assert tensors[name].dtype == (codes.dtype if name.endswith("_scale") else dtype)
        assert tensors[name].is_contiguous()
    back = packing.unpack(tensors, data_type.name, codes.scheme, codes.shape, codes.dtype)
    assert back.tensors.keys() == codes.tensors.keys()
    for name, tensor in codes.tensors.items():
        assert torch.equal(back.tensors[name], tensor), name
    assert torch.equal(data_type.decode(back), data_type.decode(codes))


@EACH
@pytest.mark.parametrize("bits", range(2, 9))
def test_packed_words_are_read_as_they_were_tuned(data_type, bits):
    packing = PackQuantized()
    for group_size, shape, dtype in itertools.product((-1, 32), ((32, 32), (40, 96), (11, 64)), DTYPES):
        scheme = scheme_of(data_type, bits, group_size)
        assert packing.refuses(data_type.name, scheme, shape) is None
        weight = weights(shape, dtype, bits)
        codes = data_type.encode(weight, scheme, scale_dtype=packing.scale_dtype(dtype))
        check_round_trip(packing, data_type, codes)
        tuned, *_ = data_type.quant_tensor(weight, bits, group_size, scale_dtype=dtype)
        found = decompressed(packing, codes)
        assert found.dtype == dtype
        assert torch.equal(found, tuned), (group_size, shape, dtype)


@pytest.mark.parametrize("data_type", [IntSym(), IntSymGptq()], ids=lambda d: d.name)
@pytest.mark.parametrize("group_size", [-1, 0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bytes_are_read_as_they_were_tuned(data_type, group_size, dtype):
    packing = IntQuantized()
    scheme = schemes()["INT8"].replace(group_size=group_size, data_type=data_type.name).resolved()
    assert packing.refuses(data_type.name, scheme, (24, 40)) is None
    weight = weights((24, 40), dtype)
    codes = data_type.encode(weight, scheme, scale_dtype=dtype)
    check_round_trip(packing, data_type, codes)
    assert torch.equal(
        decompressed(packing, codes), data_type.quant_tensor(weight, 8, group_size, scale_dtype=dtype)[0]
    )


@EACH
def test_frozen_activations_come_back_as_they_were(data_type):
    packing, sym = IntQuantized(), data_type.name != "int_asym"
    scheme = schemes()["INT8"].replace(
        act_group_size=0, act_dynamic=False, act_data_type=data_type.name, act_sym=sym
    ).resolved()  # fmt: skip
    assert packing.refuses("int_sym", scheme, (32, 32)) is None
    codes = IntSym().encode(weights((32, 32), torch.bfloat16), scheme, scale_dtype=torch.bfloat16)
    frozen = data_type.freeze(torch.tensor(-1.7), torch.tensor(3.1), scheme)
    codes.tensors.update({f"input_{name}": tensor for name, tensor in frozen.items()})
    check_round_trip(packing, IntSym(), codes)
    tensors, args = packing.pack(codes), packing.describe("int_sym", scheme)["input_activations"]
    assert (args["strategy"], args["dynamic"], args["symmetric"]) == ("tensor", False, sym)
    # As `QuantizationArgs` means it: values from scale (-128 - zero point) to scale (127 - zero point).
    scale, zero_point = tensors["input_scale"].float(), tensors.get("input_zero_point", torch.zeros(1)).float()
    ends = [(scale * (end - zero_point)).item() for end in (-128, 127)]
    step = scale.abs().item()
    assert min(ends) <= -1.7 + step
    assert max(ends) >= 3.1 - step
    del codes.tensors[f"input_{next(iter(frozen))}"]
    with pytest.raises(ContractError, match="was not observed"):
        packing.pack(codes)


def test_the_words_of_the_config():
    named = {name: scheme.resolved() for name, scheme in schemes().items()}
    described = PackQuantized().describe("int_sym", named["W4A16"])
    assert described["format"] == "pack-quantized"
    assert "input_activations" not in described
    args = TheirScheme(targets=["Linear"], **described).weights
    assert (args.num_bits, args.type, args.symmetric, args.strategy, args.group_size) == (4, "int", True, "group", 128)
    args = TheirScheme(targets=["Linear"], **PackQuantized().describe("int_asym", named["W4A16"].replace(sym=False)))
    assert args.weights.symmetric is False
    eight = TheirScheme(targets=["Linear"], **IntQuantized().describe("int_sym", named["INT8"]))
    assert (eight.weights.strategy, eight.weights.dynamic) == ("channel", False)
    assert (eight.input_activations.strategy, eight.input_activations.dynamic) == ("token", True)
    four = TheirScheme(targets=["Linear"], **PackQuantized().describe("int_sym", named["INT4"]))
    assert (four.weights.num_bits, four.input_activations.num_bits) == (4, 4)
    grouped = IntQuantized().describe("int_sym", named["INT8"].replace(act_group_size=64))
    assert grouped["input_activations"]["group_size"] == 64


def test_what_the_layouts_cannot_hold_is_said():
    pack, eight = PackQuantized(), IntQuantized()
    plain, int8 = QuantizationScheme(data_type="int").resolved(), schemes()["INT8"].resolved()
    assert "no multiple of group_size 128" in pack.refuses("int_sym", plain, (64, 200))
    assert "take group_size -1" in pack.refuses("int_sym", plain.replace(group_size=0), (64, 64))
    assert "fill one word" in pack.refuses("int_asym", plain.replace(sym=False), (8, 128))
    assert "not acme" in pack.refuses("acme", plain, (64, 128))
    assert "not fp8" in pack.refuses("int_sym", int8.replace(act_data_type="fp8"), (64, 64))
    assert "groups of 48" in pack.refuses("int_sym", int8.replace(act_group_size=48), (64, 64))
    assert "dynamic activations" in pack.refuses("int_sym", int8.replace(act_dynamic=False), (64, 64))
    assert "scheme INT8" in eight.refuses("int_sym", plain.replace(bits=8), (64, 128))
    assert "symmetric weights" in eight.refuses("int_asym", int8.replace(sym=False), (64, 64))
    assert "take group_size -1" in eight.refuses("int_sym", int8.replace(group_size=32), (64, 64))
    assert "act_group_size 0" in eight.refuses("int_sym", int8.replace(act_dynamic=False), (64, 64))


def test_scales_that_would_be_rounded_are_refused():
    scheme = QuantizationScheme(4, 32, data_type="int_sym_gptq")  # dividing by 15; by 8, nothing would be lost
    codes = IntSymGptq().encode(weights((32, 32), torch.bfloat16), scheme, scale_dtype=torch.float16)
    with pytest.raises(ContractError, match="would have to round"):
        PackQuantized().pack(codes)


def test_an_old_library_is_said_in_a_sentence(monkeypatch):
    helpers = "compressed_tensors.compressors.pack_quantized.helpers"
    monkeypatch.setattr(f"{helpers}.pack_to_int32", lambda codes, bits: torch.zeros(1, -(-32 // (32 // bits))))
    codes = IntSym().encode(weights((32, 32), torch.float32), QuantizationScheme(3, 32), scale_dtype=torch.float32)
    with pytest.raises(PluginError, match="0.20 or later"):
        PackQuantized().pack(codes)


def test_a_missing_library_is_said_in_a_sentence(monkeypatch):
    codes = IntSym().encode(weights((32, 32), torch.float32), QuantizationScheme(4, 32), scale_dtype=torch.float32)
    monkeypatch.setitem(sys.modules, "compressed_tensors.compressors.pack_quantized.helpers", None)
    with pytest.raises(PluginError, match=r'pip install "autoround-int\[llm_compressor\]"'):
        PackQuantized().pack(codes)
