# SPDX-License-Identifier: Apache-2.0
import pytest

from auto_round.data_type import DataType
from auto_round.errors import ConflictError, SchemeError, UnknownNameError
from auto_round.hookspecs import hookimpl
from auto_round.plugins import Registry, default_registry
from auto_round.schemes import PRESET_SCHEMES, QuantizationScheme


class Named(DataType):
    def __init__(self, name):
        self.name = name

    def quant_tensor(self, tensor, bits=4):
        return tensor, 1, None


class Plugin:
    def __init__(self, *names):
        self.offered = [Named(name) for name in names]

    @hookimpl
    def quant_tensor(self):
        return self.offered


def registry_of(*names):
    registry = Registry(entry_points=False)
    registry.register(Plugin(*names), "acme")
    return registry


def test_a_private_registry_holds_core_and_what_it_was_given():
    registry = registry_of("acme_fp5")
    assert [r.name for r in registry.report()] == ["core", "acme"]
    assert registry.data_type_names() == ["acme_fp5"]
    assert "fake" in registry.format_names()
    assert registry.output_format("fake").registry is registry
    registry.unregister("ACME")
    assert registry.data_type_names() == []
    with pytest.raises(UnknownNameError, match="no plugin 'acme' was registered here"):
        registry.unregister("acme")


def test_registering_again_changes_nothing_and_another_is_a_conflict():
    registry = Registry(entry_points=False)
    plugin = Plugin("acme_fp5")
    registry.register(plugin, "acme")
    registry.register(plugin, "Acme")
    assert registry.data_type_names() == ["acme_fp5"]
    with pytest.raises(ConflictError, match="a plugin called acme is registered already"):
        registry.register(Plugin("acme_fp5"), "acme")


def test_the_name_of_a_plugin_given_without_one():
    registry = Registry(entry_points=False)
    registry.register(Plugin("acme_fp5"))
    assert registry.provenance("acme_fp5").plugin == "Plugin"
    assert registry.data_type("Plugin:acme_fp5").name == "acme_fp5"


@pytest.mark.parametrize(
    ("fields", "offered", "found"),
    [
        ({"data_type": "a"}, ["a", "a4", "a_sym", "a4_sym"], "a"),
        ({"data_type": "a"}, ["a_sym", "a4", "a4_sym"], "a4"),
        ({"data_type": "a"}, ["a4_sym", "a_sym"], "a_sym"),
        ({"data_type": "a", "sym": False}, ["a_sym", "a4_sym", "a4_asym"], "a4_asym"),
        ({"data_type": "a", "bits": 8}, ["a4", "a8"], "a8"),
        ({"data_type": "a", "bits": 8, "group_size": (2, 2)}, ["a", "a8", "block_a8"], "block_a8"),
        ({"data_type": "a", "group_size": (2, 2)}, ["a", "b"], "a"),
        ({"data_type": "a", "group_size": 32}, ["block_a", "a_sym"], "a_sym"),
        ({"data_type": "acme:a", "group_size": (2, 2)}, ["a", "block_a_sym"], "block_a_sym"),
        ({"data_type": "A"}, ["a-4"], None),
        ({"data_type": "A-b"}, ["a_B4"], "a_B4"),
    ],
)
def test_names_are_completed(fields, offered, found):
    registry = registry_of(*offered)
    scheme = QuantizationScheme(**fields)
    if found is None:
        with pytest.raises(UnknownNameError, match="offers the data type 'A'"):
            registry.data_type_for(scheme)
    else:
        assert registry.data_type_for(scheme).name == found


def test_completion_stops_at_a_conflict():
    registry = registry_of("a_sym")
    registry.register(Plugin("a4"), "one")
    registry.register(Plugin("a4"), "two")
    with pytest.raises(ConflictError, match="data type a4 is claimed by plugin one as one:a4"):
        registry.data_type_for(QuantizationScheme(data_type="a"))
    assert registry.data_type_for(QuantizationScheme(data_type="two:a")) is not registry.data_type("one:a4")


def test_schemes_a_program_adds():
    registry = registry_of("acme_fp5")
    mine = QuantizationScheme(bits=5, data_type="acme_fp5")
    registry.add_scheme("Mine", mine)
    assert registry.scheme("mine") is mine
    assert registry.scheme("script:MINE") is mine
    assert registry.scheme_names() == ["Mine"]
    registry.remove_scheme("MINE")
    assert registry.scheme_names() == []
    with pytest.raises(UnknownNameError):
        registry.remove_scheme("Mine")
    with pytest.raises(SchemeError, match="added as a name and a QuantizationScheme"):
        registry.add_scheme("Mine", {"bits": 4})


def test_a_program_may_replace_a_scheme_for_itself(site, sources):
    site.add("autoround-acme", sources.schemes("ACME4"))
    registry = site.registry()
    original, mine = registry.scheme("ACME4"), QuantizationScheme(bits=3)
    registry.add_scheme("acme4", mine)
    assert registry.scheme("ACME4") is mine
    assert registry.scheme_names() == ["acme4"]
    assert registry.scheme("acme:ACME4") is original
    assert [r.state for r in registry.report()] == ["loaded"] * 3
    registry.remove_scheme("ACME4")
    assert registry.scheme("ACME4") is original
    with pytest.raises(UnknownNameError, match=r"belongs to plugin acme \(autoround-acme 1.0\) and stays"):
        registry.remove_scheme("ACME4")


def test_a_scheme_a_plugin_adds_while_it_is_imported_is_its_own(site, monkeypatch):
    registry = site.registry(script=True)
    monkeypatch.setattr("auto_round.plugins.registry._default", lambda: registry)
    imports = "from auto_round.schemes import PRESET_SCHEMES, QuantizationScheme\n"
    add = imports + "PRESET_SCHEMES[{!r}] = QuantizationScheme(bits=5)\n"
    site.add("autoround-acme", add.format("ACME5"))
    site.add("autoround-worse", add.format("WORSE5") + "1/0")
    assert PRESET_SCHEMES["acme5"].bits == 5
    assert list(PRESET_SCHEMES) == ["ACME5"]
    assert [(r.name, r.schemes) for r in registry.report()][1:] == [("acme", ("ACME5",)), ("worse", ())]


def test_preset_schemes_is_a_live_view(monkeypatch):
    registry = registry_of("acme_fp5")
    monkeypatch.setattr("auto_round.plugins.registry._default", lambda: registry)
    assert list(PRESET_SCHEMES) == []
    PRESET_SCHEMES["MINE"] = QuantizationScheme(bits=3)
    assert "MINE" in PRESET_SCHEMES
    assert len(PRESET_SCHEMES) == 1
    assert PRESET_SCHEMES["mine"].bits == 3
    assert default_registry().scheme("MINE").bits == 3
    assert dict(PRESET_SCHEMES) == {"MINE": QuantizationScheme(bits=3)}
    for name in PRESET_SCHEMES:
        PRESET_SCHEMES[name + "2"] = PRESET_SCHEMES[name]
    del PRESET_SCHEMES["MINE"]
    assert list(PRESET_SCHEMES) == ["MINE2"]


def test_the_default_registry_is_one():
    assert default_registry() is default_registry()


def test_a_plugin_may_ask_while_it_is_imported(site, sources, monkeypatch):
    site.add("autoround-acme", sources.declaring("acme_fp5"))
    ask = "from auto_round.plugins import default_registry\nseen = default_registry().data_type_names()\n"
    site.add("autoround-zeta", ask + sources.declaring("zeta_fp5"))
    registry = site.registry()
    monkeypatch.setattr("auto_round.plugins.registry._default", lambda: registry)
    assert registry.data_type_names() == ["acme_fp5", "zeta_fp5"]
    assert __import__("autoround_zeta").seen == ["acme_fp5"]


def test_digest_tells_names_and_versions_of_what_works(site, sources):
    site.add("autoround-acme", sources.declaring("acme_fp5"), version="2.1")
    site.add("autoround-worse", "1/0")
    site.add("autoround-none", "")
    digest = site.registry().digest()
    assert digest.startswith("acme=autoround-acme==2.1, core=autoround-core==")
    assert digest == site.registry().digest()
    assert "worse" not in digest
    assert "none" not in digest
