# SPDX-License-Identifier: Apache-2.0
"""What the family adds, that saying so costs no torch, and how core completes the names of schemes."""

import subprocess
import sys

import pytest

import auto_round_fp8
from auto_round.data_type import DataType
from auto_round.export import OutputFormat
from auto_round.export.packing import Packing
from auto_round.plugins import Registry


@pytest.fixture(scope="module")
def registry():
    found = Registry(entry_points=False)
    found.register(auto_round_fp8, name="fp8")
    return found


def test_listing_imports_no_torch():
    program = (
        "import sys, auto_round_fp8 as family\n"
        "family.quant_tensor(), family.schemes(), family.exporters()\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_every_record_loads_what_it_names():
    for record in auto_round_fp8.quant_tensor():
        data_type = record.load()
        assert isinstance(data_type, DataType)
        assert data_type.name == record.name
        assert "v" in data_type.offers
        assert data_type.runtimes
    for record in auto_round_fp8.exporters():
        loaded = record.load()
        assert isinstance(loaded, Packing | OutputFormat)
        assert loaded.name == record.name
        assert isinstance(loaded, Packing) or loaded.summary == record.summary


@pytest.mark.parametrize(
    ("scheme", "weights", "activations"),
    [
        ("FP8_STATIC", "fp8", "fp8"),
        ("FP8_DYNAMIC", "fp8", "fp8"),
        ("FP8_BLOCK", "block_fp8", "fp8"),
        ("FPW8A16", "fp8", None),
        ("W4AFP8", "fp8_to_int_sym", "fp8"),
    ],
)
def test_schemes_and_the_data_types_they_mean(registry, scheme, weights, activations):

    found = registry.scheme(scheme).resolved()
    data_type = registry.data_type_for(found)
    assert data_type.name == weights
    assert data_type.supports(found, (256, 256)) is None
    assert found.quantizes_activations == (activations is not None)
    if activations is not None:
        assert registry.data_type_for(found.for_activations()).name == activations
        assert found.act_dynamic is (scheme != "FP8_STATIC")


@pytest.mark.parametrize(
    ("scheme", "packing"),
    [
        ("FP8_STATIC", "auto_round:fp8_static"),
        ("FP8_DYNAMIC", "auto_round:fp8"),
        ("FP8_BLOCK", "auto_round:fp8"),
        ("FPW8A16", "auto_round:fp8"),
        ("W4AFP8", "auto_round:fp8_to_int"),
    ],
)
def test_which_packing_comes_first(registry, scheme, packing):
    found = registry.scheme(scheme).resolved()
    name, shape = registry.data_type_for(found).name, (256, 256)
    assert next(p.name for p in registry.packings("auto_round") if p.refuses(name, found, shape) is None) == packing
    taken = [p.name for p in registry.packings("llm_compressor") if p.refuses(name, found, shape) is None]
    assert taken == ([] if scheme == "W4AFP8" else ["float-quantized"])
