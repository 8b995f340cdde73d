# SPDX-License-Identifier: Apache-2.0
"""What the family adds, and that saying so costs no torch."""

import subprocess
import sys

import auto_round_int
from auto_round.data_type import DataType
from auto_round.export.packing import Packing


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
        packing = record.load()
        assert isinstance(packing, Packing)
        assert (packing.name, packing.format) == (record.name, record.format)


def test_schemes_have_a_home_for_their_codes():
    packings = [record.load() for record in auto_round_int.exporters()]
    for name, scheme in auto_round_int.schemes().items():
        assert name.startswith(f"W{scheme.bits}A16")
        for sym in (True, False):
            found = scheme.replace(sym=sym)
            data_type = "int_sym" if sym else "int_asym"
            assert any(p.refuses(data_type, found, (256, 256)) is None for p in packings), name


def test_which_packing_comes_first():
    packings = [record.load() for record in auto_round_int.exporters()]
    scheme = auto_round_int.schemes()["W4A16"]

    def first(data_type, scheme, shape=(256, 256)):
        return next(p.name for p in packings if p.refuses(data_type, scheme, shape) is None)

    assert first("int_sym", scheme) == "auto_round:auto_gptq"
    assert first("int_asym", scheme.replace(sym=False)) == "auto_round:auto_awq"
    assert first("int_asym", scheme.replace(sym=False), (256, 160)) == "auto_round"
    assert first("int_asym", scheme.replace(sym=False, bits=2)) == "auto_round"
    assert first("int_sym", scheme.replace(bits=5)) == "auto_round:int_dense"
