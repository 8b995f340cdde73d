# SPDX-License-Identifier: Apache-2.0
"""What the family adds, and that saying so costs neither torch nor gguf."""

import subprocess
import sys

import auto_round_gguf
from auto_round.data_type import DataType
from auto_round.export.format import OutputFormat
from auto_round.names import normalise
from auto_round.plugins import Registry
from auto_round_gguf.schemes import plain_scheme
from auto_round_gguf.types import BLOCK_TYPES


def test_listing_imports_nothing_heavy():
    program = (
        "import sys, auto_round_gguf as family\n"
        "family.quant_tensor(), family.schemes(), family.exporters()\n"
        "assert not {'torch', 'gguf', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_every_record_loads_what_it_names():
    for record in auto_round_gguf.quant_tensor():
        data_type = record.load()
        assert isinstance(data_type, DataType)
        assert data_type.name == record.name
        assert {"v", "min_scale", "max_scale", "init_scale", "global_scale"} <= data_type.offers
        assert data_type.describe()["name"] == record.name
    for record in auto_round_gguf.exporters():
        output_format = record.load()
        assert isinstance(output_format, OutputFormat)
        assert normalise(output_format.name) == normalise(record.name)


def test_every_scheme_means_a_data_type_of_ours():
    registry = Registry()

    for name, scheme in auto_round_gguf.schemes().items():
        assert registry.scheme(name) == scheme
        data_type = registry.data_type_for(scheme)
        assert data_type.name == scheme.data_type
        assert data_type.supports(scheme, (64, 512)) is None, name
    assert len(auto_round_gguf.schemes()) == 16


def test_names_of_recipes_made_elsewhere():
    registry = Registry()

    kinds = {
        "int_asym_float_zp": ("q4_1", "q5_1"),
        "int_asym_dq": ("q2_k", "q4_k", "q5_k"),
        "int_sym_dq": ("q3_k", "q6_k"),
    }
    for name, meant in kinds.items():
        found = registry.data_type(name)
        for kind in map(BLOCK_TYPES.get, meant):
            assert found.block_type(kind.bits) is kind
        scheme = plain_scheme(BLOCK_TYPES["q8_0"]).replace(data_type=name)
        assert "bits, not 8" in found.supports(scheme, (64, 512))


def test_a_type_has_no_other_bits_or_groups():
    scheme = plain_scheme(BLOCK_TYPES["q4_k"])
    data_type = Registry().data_type_for(scheme)
    assert "not 3" in data_type.supports(scheme.replace(bits=3), (64, 512))
    assert "group_size=32, not 64" in data_type.supports(scheme.replace(group_size=64), (64, 512))
    assert "no whole number" in data_type.supports(scheme, (64, 288))
