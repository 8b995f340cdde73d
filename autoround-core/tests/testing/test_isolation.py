# SPDX-License-Identifier: Apache-2.0
"""The fixture authors isolate their tests with, and the context it is made of."""

import types

import pytest

from auto_round import PRESET_SCHEMES, DataType, QuantizationScheme, hookimpl, register_dtype
from auto_round.data_type.register import declarations
from auto_round.data_type.utils import get_quant_func
from auto_round.plugins import declared, default_registry
from auto_round.testing.distributions import FakeDistribution
from auto_round.testing.isolation import isolated

MODULE = """
from auto_round.data_type.register import register_dtype

@register_dtype("acme4")
def quantize(tensor, bits=4):
    return tensor, 1, None
"""


class Acme(DataType):
    name = "acme5"

    def quant_tensor(self, tensor, bits=5):
        return tensor, 1, None


class Plugin:
    @hookimpl
    def quant_tensor(self):
        return [Acme()]

    @hookimpl
    def schemes(self):
        return {"ACME5": QuantizationScheme(5, 32, True, "acme5")}


@pytest.fixture
def acme():
    module = types.ModuleType("auto_round_acme_of_a_test")
    with declared.as_before():
        exec(MODULE, module.__dict__)
        yield module


def test_it_stands_in_for_the_one_of_the_process_and_holds_what_it_is_given(isolated_registry):
    assert default_registry() is isolated_registry
    assert [line.name for line in isolated_registry.report()] == ["core"]
    isolated_registry.register(Plugin())
    assert isolated_registry.data_type_names() == ["acme5"]
    assert PRESET_SCHEMES["acme5"].bits == 5
    assert get_quant_func("acme", 5)[1] == "acme5"


def test_nothing_that_is_installed_is_there(tmp_path, isolated_registry):
    fake = FakeDistribution("autoround-acme", plugins={"acme": "auto_round_acme"}, modules={"auto_round_acme": MODULE})
    with fake.installed(tmp_path):
        assert isolated_registry.data_type_names() == []
        import auto_round_acme

        isolated_registry.register(auto_round_acme)
        assert isolated_registry.provenance("acme4").plugin == "auto_round_acme"


def test_what_a_test_declares_is_live_and_then_gone():
    outside, before = default_registry(), list(declarations())
    with isolated() as registry:

        @register_dtype("mine4")
        def quantize(tensor):
            return tensor, 1, None

        PRESET_SCHEMES["MINE4"] = QuantizationScheme(4, 32, True, "mine4")
        assert registry.data_type_for(registry.scheme("mine4")).name == "mine4"
    assert declarations() == before
    assert default_registry() is outside
    assert "MINE4" not in PRESET_SCHEMES
    assert "mine4" not in outside.data_type_names()


def test_a_plugin_given_to_it_is_not_its_own_afterwards(acme):
    outside, claimed = default_registry(), set(declared._claimed_modules)
    with isolated(acme) as registry:
        assert registry.provenance("acme4").plugin == acme.__name__
        with isolated(Plugin(), acme) as inner:
            assert default_registry() is inner
            assert inner.data_type_names() == ["acme5", "acme4"]
        assert default_registry() is registry
    assert default_registry() is outside
    assert declared._claimed_modules == claimed
    assert "acme4" in [name for d in declarations() for name in d.names]  # it was declared before


def test_a_failing_test_leaves_nothing_either():
    before = list(declarations())

    def fails():
        with isolated():
            register_dtype("mine4")(lambda tensor: tensor / 0)
            default_registry().data_type("mine4").quant_tensor(1)

    with pytest.raises(ZeroDivisionError):
        fails()
    assert declarations() == before
