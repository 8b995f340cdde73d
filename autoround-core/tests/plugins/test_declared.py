# SPDX-License-Identifier: Apache-2.0
import importlib

import pytest

from auto_round.data_type import FunctionDataType, register_dtype
from auto_round.errors import ConflictError
from auto_round.plugins import Provenance, Registry


def test_a_module_with_decorated_functions_is_a_plugin(site, sources):
    site.add("autoround-acme", sources.declaring("acme_fp5", "acme_fp6"))
    registry = site.registry()
    found = registry.data_type("ACME-fp5")
    assert isinstance(found, FunctionDataType)
    assert (found.name, found.summary, found.offers) == ("acme_fp5", "One line.", {"tensor", "bits", "v"})
    assert registry.data_type("acme_fp5") is found
    assert registry.provenance("acme_fp6") == Provenance("acme", "autoround-acme", "1.0")


def test_a_module_that_was_imported_before_is_as_good(site, sources):
    site.add("autoround-acme", "import autoround_acme.math", **{"autoround_acme.math": sources.declaring("acme_fp5")})
    site.add("autoround-acme", "import autoround_acme.math", **{"autoround_acme.math": sources.declaring("acme_fp5")})
    importlib.import_module("autoround_acme.math")
    registry = site.registry(script=True)
    assert registry.provenance("acme_fp5").plugin == "acme"


def test_a_helper_elsewhere_declares_for_the_plugin_that_imports_it(site, sources):
    site.add("autoround-acme", "import acme_elsewhere", acme_elsewhere=sources.declaring("acme_fp5"))
    for _ in range(2):  # the second registry finds everything imported
        assert site.registry(script=True).provenance("acme_fp5").plugin == "acme"


def test_a_plugin_that_imports_another_takes_nothing_of_it(site, sources):
    site.add("autoround-acme", "import autoround_zeta\n" + sources.declaring("acme_fp5"))
    site.add("autoround-zeta", sources.declaring("zeta_fp5"))
    registry = site.registry()
    assert registry.provenance("zeta_fp5").plugin == "zeta"
    assert registry.provenance("acme_fp5").plugin == "acme"


def test_a_plugin_that_fails_after_importing_another_takes_nothing_down(site, sources):
    site.add("autoround-acme", "import autoround_zeta\n1/0")
    site.add("autoround-zeta", sources.declaring("zeta_fp5"))
    assert site.registry().data_type_names() == ["zeta_fp5"]


def test_one_name_for_two_functions_is_broken(site, sources):
    twice = sources.declaring("acme_fp5") + sources.declaring("ACME-fp5").replace("def quantize", "def other")
    site.add("autoround-acme", twice)
    line = site.report("acme")
    assert line.state == "broken"
    assert "autoround_acme.quantize and autoround_acme.other both declare" in line.reason


def test_a_hook_has_the_last_word_over_a_declaration_of_the_same_plugin(site, sources):
    site.add(
        "autoround-acme",
        sources.declaring("acme_fp5") + sources.offering("acme_fp5", "acme_math:Acme"),
        acme_math=sources.data_type("acme_fp5"),
    )
    assert type(site.registry().data_type("acme_fp5")).__name__ == "Acme"


def test_what_a_script_declares_is_live_at_once():
    registry = Registry(entry_points=False, script=True)
    assert "mine4" not in registry.data_type_names()

    @register_dtype("mine4")
    def first(tensor):
        return tensor, 1, None

    assert registry.data_type("mine4").quant_tensor(7) == (7, 1, None)
    assert registry.provenance("mine4") == Provenance("script", "", "")
    assert registry.data_type("script:mine4") is registry.data_type("mine4")
    assert registry.report()[-1].data_types == ("mine4",)

    @register_dtype("mine4")
    def again(tensor):
        return tensor, 2, None

    assert registry.data_type("mine4").quant_tensor(7) == (7, 2, None)


def test_a_private_registry_has_nothing_of_the_script():
    @register_dtype("mine4")
    def quantize(tensor):
        return tensor, 1, None

    assert Registry(entry_points=False).data_type_names() == []


def test_a_module_given_by_hand_owns_what_it_declares(make_module, sources):
    module = make_module("notebook_module", sources.declaring("mine4"))
    everywhere = Registry(entry_points=False, script=True)
    assert everywhere.provenance("mine4").plugin == "script"
    private = Registry(entry_points=False)
    private.register(module, name="mine")
    assert private.provenance("mine4").plugin == "mine"
    assert everywhere.data_type_names() == []
    private.unregister("mine")
    assert private.data_type_names() == []


def test_a_script_and_a_plugin_that_want_one_name(site, sources):
    site.add("autoround-acme", sources.declaring("acme_fp5"))

    @register_dtype("acme_fp5")
    def quantize(tensor):
        return tensor, 1, None

    registry = site.registry(script=True)
    with pytest.raises(ConflictError, match="autoround-acme:acme_fp5 and plugin script as script:acme_fp5"):
        registry.data_type("acme_fp5")
    assert registry.data_type_names() == ["autoround-acme:acme_fp5", "script:acme_fp5"]
