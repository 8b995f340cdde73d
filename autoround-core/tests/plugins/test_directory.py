# SPDX-License-Identifier: Apache-2.0
import pytest

from auto_round.plugins.directory import bringing, known_distributions, what_to_install


def test_every_entry_is_complete():
    names = [d.name for d in known_distributions()]
    assert names == [f"autoround-{family}" for family in ("int", "fp8", "mxfp", "nvfp", "gguf")]
    for distribution in known_distributions():
        assert distribution.summary
        assert distribution.schemes
        assert distribution.data_types


@pytest.mark.parametrize(
    ("scheme", "families"),
    [
        ("W4A16", ["int"]),
        ("w2a16g64", ["int"]),
        ("W4AFP8", ["fp8"]),
        ("mxfp4a16", ["mxfp"]),
        ("NVFP4_E5M3", ["nvfp"]),
        ("gguf:q6_k", ["gguf"]),
        ("W9A16", []),
    ],
)
def test_schemes(scheme, families):
    assert [d.name for d in bringing("scheme", [scheme])] == [f"autoround-{f}" for f in families]


@pytest.mark.parametrize("name", ["int_asym_dq", "int_sym_dq"])
def test_names_that_look_alike(name):
    assert [d.name for d in bringing("data type", [name])] == ["autoround-gguf"]


def test_what_to_install_lists_all():
    assert all(d.name in what_to_install() for d in known_distributions())
