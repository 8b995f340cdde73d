# SPDX-License-Identifier: Apache-2.0
"""What the family adds, and that saying so costs no torch."""

import subprocess
import sys

import pytest

import auto_round_mxfp
import auto_round_mxfp.microscaling as family
from auto_round.data_type import DataType
from auto_round.data_type.utils import get_quant_func
from auto_round.export import OutputFormat, Packing
from auto_round.hookspecs import LazyPacking
from auto_round.plugins import default_registry

NAMES = {
    "mx_fp4", "mx_fp4e2m1", "mx_fp6", "mx_fp6e2m3", "mx_fp6e3m2", "mx_fp8", "mx_fp8e4m3", "mx_fp8e5m2",
    "mx_int8", "mx_int4", "mx_int2",
}  # fmt: skip


def test_listing_imports_no_torch():
    program = (
        "import sys, auto_round_mxfp as family\n"
        "family.quant_tensor(), family.schemes(), family.exporters()\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_every_record_loads_what_it_names():
    records = auto_round_mxfp.quant_tensor()
    rounding_up = {f"{name}_rceil" for name in NAMES} | {"mx_fp_rceil", "mx_fp4_rceil_v2"}
    assert {record.name for record in records} == NAMES | rounding_up
    for record in records:
        data_type = record.load()
        assert isinstance(data_type, DataType)
        assert (data_type.name, data_type.summary) == (record.name, record.summary)
        assert {"v", "max_scale", "init_scale"} <= data_type.offers
    for record in auto_round_mxfp.exporters():
        found = record.load()
        assert isinstance(found, Packing if isinstance(record, LazyPacking) else OutputFormat)
        assert found.name == record.name
        if isinstance(record, LazyPacking):
            assert found.format == record.format
        else:
            assert found.summary == record.summary
    with pytest.raises(AttributeError, match="no attribute mx_fp5"):
        _ = family.mx_fp5


@pytest.mark.parametrize(
    ("asked", "bits", "found"),
    [
        ("mx_fp", 4, "mx_fp4"), ("mx_fp", 6, "mx_fp6"), ("mx_fp", 8, "mx_fp8"), ("mx_int", 4, "mx_int4"),
        ("mx_fp4e2m1", 4, "mx_fp4e2m1"), ("mx_fp8e5m2", 8, "mx_fp8e5m2"), ("mx_fp_rceil", 4, "mx_fp_rceil"),
        ("mx_fp_rceil", 8, "mx_fp_rceil"), ("MX-FP4-RCEIL-V2", 4, "mx_fp4_rceil_v2"), ("mx_int", 2, "mx_int2"),
    ],
)  # fmt: skip
def test_names_are_completed_with_bits(asked, bits, found):
    assert get_quant_func(asked, bits)[1] == found


def test_schemes_have_data_types_and_homes():
    registry = default_registry()
    packings = [record.load() for record in auto_round_mxfp.exporters() if isinstance(record, LazyPacking)]
    named = auto_round_mxfp.schemes()
    assert {"MXFP4", "MXFP4_RCEIL", "MXFP6", "MXFP8", "MXFP8_RCEIL", "MXINT4", "MXINT8", "MXFP4A16"} <= named.keys()
    assert "MXFP4_MOE" in named
    for name, scheme in named.items():
        resolved = scheme.resolved()
        data_type = registry.data_type_for(resolved)
        assert data_type.supports(resolved, (64, 64)) is None
        fitting = {p.format for p in packings if p.refuses(data_type.name, resolved, (64, 64)) is None}
        assert fitting == ({"auto_round"} if "INT" in name else {"auto_round", "llm_compressor"})
        assert resolved.quantizes_activations != name.endswith(("A16", "_MOE"))
        if resolved.quantizes_activations:
            activations = scheme.replace(bits=resolved.act_bits, data_type=resolved.act_data_type)
            rule = registry.data_type_for(activations).rule
            assert rule.name == ("rceil" if name.endswith("RCEIL") else "floor")


def test_cards_are_plain_data():
    card = family.mx_fp4.describe()
    assert card["elements"] == {"e2m1": "+-0 0.5 1 1.5 2 3 4 6"}
    assert "floor(log2 A)" in card["scale"]
    assert family.mx_fp8.describe()["elements"]["e4m3"].endswith("416 448")
    assert family.mx_fp_rceil.describe()["bits"] == "4 or 6 or 8"
