# SPDX-License-Identifier: Apache-2.0
"""What the family adds, and that saying so costs no torch."""

import subprocess
import sys

import pytest

import auto_round_int
from auto_round.data_type import DataType
from auto_round.export import OutputFormat, Packing
from auto_round.hookspecs import LazyFormat
from auto_round.plugins import Registry
from auto_round.schemes import LayerPlace, QuantizationScheme


def test_listing_imports_no_torch():
    program = (
        "import sys, auto_round_int as family\n"
        "family.quant_tensor(), family.schemes(), family.exporters()\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_every_record_loads_what_it_names():
    for record in auto_round_int.quant_tensor():
        data_type = record.load()
        assert isinstance(data_type, DataType)
        assert data_type.name == record.name
        assert "v" in data_type.offers
    for record in auto_round_int.exporters():
        loaded = record.load()
        assert loaded.name == record.name
        if isinstance(record, LazyFormat):
            assert isinstance(loaded, OutputFormat)
        else:
            assert isinstance(loaded, Packing)
            assert loaded.format == record.format


def packings_of(container):
    return [r.load() for r in auto_round_int.exporters() if getattr(r, "format", "") == container]


@pytest.mark.parametrize("container", ["auto_round", "llm_compressor"])
def test_schemes_have_a_home_for_their_codes(container):
    for name, scheme in auto_round_int.schemes().items():
        if not scheme.quantizes_weights:
            continue
        for sym in (True, False):
            found = scheme.replace(sym=sym).resolved()
            data_type = "int_sym" if sym else "int_asym"
            homes = [p.name for p in packings_of(container) if p.refuses(data_type, found, (256, 256)) is None]
            assert homes, name


def test_what_schemes_are_called():
    schemes = auto_round_int.schemes()
    assert {f"W{bits}A16{group}" for bits in range(2, 9) for group in ("", "G32", "G64")} <= schemes.keys()
    assert schemes["W2A16G32"] == QuantizationScheme(2, 32, data_type="int")
    assert schemes["INT8"] == schemes["INT8_W8A8"]
    int8 = schemes["INT8"].resolved()
    assert (int8.bits, int8.group_size, int8.act_bits, int8.act_group_size, int8.act_dynamic) == (8, -1, 8, -1, True)
    assert (schemes["INT4"].bits, schemes["INT4"].act_bits) == (4, 4)
    assert not schemes["BF16"].quantizes_weights


def test_every_scheme_finds_its_data_types():
    registry = Registry(entry_points=False)
    registry.register(auto_round_int, name="int")
    for scheme in auto_round_int.schemes().values():
        assert registry.data_type_for(scheme).name == "int_sym"
    assert registry.data_type_for(QuantizationScheme(8, -1, True, "int_sym_gptq")).name == "int_sym_gptq"


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("model.layers.3.mlp.experts.17.down_proj", 4),
        ("model.layers.3.mlp.shared_expert.down_proj", 8),
        ("model.layers.3.mlp.shared_experts.down_proj", 8),
        ("model.layers.3.self_attn.q_proj", 8),
        ("lm_head", 8),
        ("model.layers.3.mlp.gate", 16),
        ("model.layers.3.mlp.shared_expert_gate", 16),
        ("model.layers.3.mlp.gate_proj", 8),
    ],
)
def test_experts_get_four_bits_and_the_rest_eight(name, bits):
    place = LayerPlace(name, (128, 128), 3, 4, {})
    mixed = auto_round_int.schemes()["W4A16_MIXED"]
    found = mixed.for_layer(place)
    assert type(found) is QuantizationScheme
    assert (found.bits, found.group_size, found.data_type) == (bits, 128, "int")
    assert mixed.replace(group_size=32).for_layer(place).group_size == 32


def test_which_packing_comes_first():
    packings = packings_of("auto_round")
    scheme = auto_round_int.schemes()["W4A16"]

    def first(data_type, scheme, shape=(256, 256)):
        return next(p.name for p in packings if p.refuses(data_type, scheme, shape) is None)

    assert first("int_sym", scheme) == "auto_round:auto_gptq"
    assert first("int_asym", scheme.replace(sym=False)) == "auto_round:auto_awq"
    assert first("int_asym", scheme.replace(sym=False), (256, 160)) == "auto_round"
    assert first("int_asym", scheme.replace(sym=False, bits=2)) == "auto_round"
    assert first("int_sym", scheme.replace(bits=5)) == "auto_round:int_dense"
    assert first("int_sym_gptq", scheme) == "auto_round:auto_gptq"


def test_which_compressed_packing_comes_first():
    packings, schemes = packings_of("llm_compressor"), auto_round_int.schemes()

    def first(scheme, data_type="int_sym"):
        found = scheme.resolved()
        return next(p.name for p in packings if p.refuses(data_type, found, (256, 256)) is None)

    assert first(schemes["INT8"]) == "int-quantized"
    assert first(schemes["W8A16"]) == "pack-quantized"
    assert first(schemes["INT4"]) == "pack-quantized"
    assert first(schemes["INT8"].replace(group_size=128)) == "pack-quantized"
    assert first(schemes["INT8"].replace(sym=False), "int_asym") == "pack-quantized"
    assert first(schemes["INT8"].replace(act_dynamic=False, act_group_size=0)) == "int-quantized"
