# SPDX-License-Identifier: Apache-2.0
"""What the family adds, and that saying so costs no torch."""

import subprocess
import sys

import auto_round_nvfp
from auto_round import QuantizationScheme
from auto_round.data_type import DataType
from auto_round.export.packing import Packing
from auto_round.plugins import default_registry


def test_listing_imports_no_torch():
    program = (
        "import sys, auto_round_nvfp as family\n"
        "family.quant_tensor(), family.schemes(), family.exporters()\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_every_record_loads_what_it_names():
    for record in auto_round_nvfp.quant_tensor():
        data_type = record.load()
        assert isinstance(data_type, DataType)
        assert data_type.name == record.name
        assert set(data_type.tuned) <= data_type.offers
        assert data_type.describe()["name"] == record.name
    for record in auto_round_nvfp.exporters():
        packing = record.load()
        assert isinstance(packing, Packing)
        assert (packing.name, packing.format) == (record.name, record.format)


def test_schemes_mean_their_data_types():
    registry = default_registry()
    expected = {
        "NVFP4": ("nv_fp4", "nv_fp4_with_static_gs"),
        "NVFP4A16": ("nv_fp4", None),
        "NVFP4_E5M3": ("nvfp4_v2", "nvfp4_v2"),
    }
    assert auto_round_nvfp.schemes().keys() == expected.keys()
    packings = [record.load() for record in auto_round_nvfp.exporters()]
    for name, (weights, activations) in expected.items():
        scheme = registry.scheme(name).resolved()
        assert registry.data_type_for(scheme).name == weights
        assert (scheme.act_data_type if scheme.quantizes_activations else None) == activations
        if activations:
            looked_up = QuantizationScheme(scheme.act_bits, scheme.act_group_size, data_type=activations)
            assert registry.data_type_for(looked_up).name == activations
        taken = [packing.format for packing in packings if packing.refuses(weights, scheme, (64, 64)) is None]
        assert taken == (["auto_round"] if name == "NVFP4_E5M3" else ["llm_compressor", "auto_round"])
