# SPDX-License-Identifier: Apache-2.0
import sys
import threading

import pytest

from auto_round.errors import ConflictError, ContractError, PluginError, UnknownNameError

PACKING = """
from auto_round.export import OutputFormat, Packing
class Acmepacking(Packing):
    name = "acme:packed"
    format = "acmeformat"
    aliases = ("acme:old", "Acme-Older")
    def refuses(self, data_type, scheme, shape): return None
    def layout(self, scheme, shape): return {}
    def pack(self, codes): return {}
    def unpack(self, tensors, data_type, scheme, shape, dtype): ...
class Acmeformat(OutputFormat):
    name = "acmeformat"
    def start(self, plan, model, directory): ...
only = Acmeformat()
"""
HOOKS = "from auto_round.hookspecs import LazyFormat, LazyPacking, hookimpl\n@hookimpl\ndef exporters(): return "


def test_what_is_lazy_is_imported_when_it_is_asked_for_and_once(site, sources):
    site.add("autoround-acme", sources.offering("acme_fp5"), acme_math=sources.data_type("acme_fp5"))
    registry = site.registry()
    assert registry.data_type_names() == ["acme_fp5"]
    assert "acme_math" not in sys.modules
    found = registry.data_type("acme_fp5")
    assert "acme_math" in sys.modules
    assert registry.data_type("acme:ACME_FP5") is found


def test_threads_get_one_object(site, sources):
    counted = "import acme_counter, time\nacme_counter.times += 1\ntime.sleep(0.05)\n"
    site.add(
        "autoround-acme",
        counted + sources.offering("acme_fp5"),
        acme_math=sources.data_type("acme_fp5"),
        acme_counter="times = 0",
    )
    registry = site.registry()
    found = []
    threads = [threading.Thread(target=lambda: found.append(registry.data_type("acme_fp5"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len({id(f) for f in found}) == 1
    assert sys.modules["acme_counter"].times == 1


def test_a_lazy_target_may_be_a_plain_function(site, sources):
    site.add(
        "autoround-acme",
        sources.offering("acme_fp5", "acme_math:quantize"),
        acme_math="def quantize(tensor, bits=4): return tensor, 1, None",
    )
    assert site.registry().data_type("acme_fp5").offers == {"tensor", "bits"}


@pytest.mark.parametrize(
    ("target", "source", "error", "reason"),
    [
        ("acme_math:Acme", "", ContractError, "module acme_math has no Acme"),
        ("acme_math", "", ContractError, "not of the form 'module:attribute'"),
        ("acme_math:Acme", "Acme = 3", ContractError, "acme_math:Acme is an object of type int, not of DataType"),
        ("acme_math:Acme", "def Acme(x): pass", ContractError, "asks for 'x', which core does not offer"),
        ("acme_math:Acme", "import lib_that_is_not_there", PluginError, "cannot be loaded: ModuleNotFoundError"),
        ("acme_math:Acme", "raise SystemExit(1)", PluginError, "cannot be loaded: SystemExit"),
        ("acme_math:Acme", "raise OSError('libacme.so')", PluginError, "cannot be loaded: OSError: libacme.so"),
    ],
)
def test_a_lazy_one_that_cannot_be_had(site, sources, target, source, error, reason):
    site.add("autoround-acme", sources.offering("acme_fp5", target), acme_math=source)
    registry = site.registry()
    for _ in range(2):
        with pytest.raises(error) as caught:
            registry.data_type("acme_fp5")
        assert reason in str(caught.value)
        assert "data type acme_fp5 of plugin acme (autoround-acme 1.0)" in str(caught.value)


def test_a_lazy_one_of_another_name(site, sources):
    site.add("autoround-acme", sources.offering("acme_fp5"), acme_math=sources.data_type("acme_fp6"))
    with pytest.raises(ContractError, match="calls itself 'acme_fp6', but its plugin offers it as 'acme_fp5'"):
        site.registry().data_type("acme_fp5")


def test_a_lazy_one_whose_signature_is_wrong(site, sources):
    wrong = sources.data_type("acme_fp5").replace("bits=4", "bitz=4")
    site.add("autoround-acme", sources.offering("acme_fp5"), acme_math=wrong)
    with pytest.raises(ContractError, match=r"autoround-acme 1.0\).*asks for 'bitz'.*did you mean bits"):
        site.registry().data_type("acme_fp5")


def test_formats_and_packings_are_checked_too(site):
    offers = (
        "[LazyFormat('acmeformat', 'acme_out:only'), LazyPacking('acme:packed', 'acme_out:Acmepacking', format='else')]"
    )
    site.add("autoround-acme", HOOKS + offers, acme_out=PACKING)
    one, other = site.registry(), site.registry()
    with pytest.raises(ContractError, match="is for format 'acmeformat', but is offered for 'else'"):
        one.packing("acme:packed")
    assert one.output_format("acmeformat").registry is one
    assert other.output_format("acmeformat").registry is other
    site.add("autoround-emca", HOOKS + "[LazyFormat('acme:packed', 'acme_out:Acmepacking')]")
    with pytest.raises(ContractError, match="is an object of type Acmepacking, not of OutputFormat"):
        site.registry(allow=["emca"]).output_format("acme:packed")


@pytest.mark.parametrize("recorded", ["acme:old", "acme:new"])
def test_files_can_only_record_a_name_that_is_found_again(site, recorded):
    named = "LazyPacking('acme:packed', 'acme_out:Acmepacking', format='acmeformat')"
    text = PACKING.replace('format = "acmeformat"', f'format = "acmeformat"\n    recorded_as = "{recorded}"')
    site.add("autoround-acme", f"{HOOKS}[{named}]", acme_out=text)
    if recorded == "acme:old":
        assert site.registry().packing("acme:packed").recorded_as == recorded
    else:
        with pytest.raises(ContractError, match="Acmepacking.recorded_as must be one of its aliases"):
            site.registry().packing("acme:packed")


def test_packings_of_a_format_and_aliases(site, caplog):
    named = "LazyPacking('acme:packed', 'acme_out:Acmepacking', format='acmeformat')"
    missing = "LazyPacking('acme:bad', 'acme_out:Nothing', format='acmeformat')"
    site.add("autoround-acme", f"{HOOKS}[{named}, {missing}]", acme_out=PACKING)
    registry = site.registry()
    assert [p.name for p in registry.packings("ACMEFORMAT")] == ["acme:packed"]
    assert any("acme:bad" in sentence for sentence in registry.warnings)
    assert "acme:bad" in caplog.text
    found = registry.packing("acme:packed")
    assert registry.packing("acme-older") is found
    assert registry.packing("acme:old") is found
    assert registry.packing("autoround-acme:acme:old") is found
    assert registry.packings("nothing") == []
    with pytest.raises(UnknownNameError, match="offers the packing 'acmo'"):
        registry.packing("acmo")


def test_what_one_alias_means_depends_on_the_layer(site):
    other = PACKING.replace("acme:packed", "emca:packed").replace("acme_out", "emca_out")
    refusing = other.replace("return None", 'return "not mine" if data_type != "emca" else None')
    site.add(
        "autoround-acme",
        HOOKS + "[LazyPacking('acme:packed', 'acme_out:Acmepacking', format='acmeformat')]",
        acme_out=PACKING.replace("return None", 'return None if data_type != "emca" else "not mine"'),
    )
    site.add(
        "autoround-emca",
        HOOKS + "[LazyPacking('emca:packed', 'emca_out:Acmepacking', format='acmeformat')]",
        emca_out=refusing,
    )
    registry = site.registry()
    for data_type in ("acme", "emca"):
        found = registry.packing("acme:old", lambda p, name=data_type: p.refuses(name, None, None) is None)
        assert found.name == f"{data_type}:packed"
    with pytest.raises(ConflictError, match="acme:old is claimed by"):
        registry.packing("acme:old")
