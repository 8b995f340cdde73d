# SPDX-License-Identifier: Apache-2.0
import importlib
import re

import pytest

from auto_round.data_type.register import declarations
from auto_round.errors import ContractError, PluginError
from auto_round.plugins import loading

HOOKS = "from auto_round.hookspecs import LazyDataType, hookimpl\n"
FUNCTION = "from auto_round.data_type.register import register_dtype\n"
WRONG_SIGNATURE = (
    f"{FUNCTION}\n@register_dtype('acme_fp5')\ndef quantize(tensor, tensor_mix=None): return tensor, 1, None\n"
)

BROKEN = {
    "raises": ("raise RuntimeError('no luck')", "RuntimeError: no luck"),
    "exits": ("import sys; sys.exit(3)", r"it ended the program \(SystemExit: 3\)"),
    "misses a library": ("raise OSError('libacme.so: cannot open shared object file')", "OSError: libacme.so"),
    "misses a module": ("import module_that_is_not_there", "ModuleNotFoundError"),
    "does not parse": ("def", "SyntaxError"),
    "wrong signature": (WRONG_SIGNATURE, "asks for 'tensor_mix', which core does not offer; did you mean tensor_m"),
    "unknown hook": (
        f"{HOOKS}\n@hookimpl\ndef quant_tensors(): return []",
        "hook quant_tensors does not exist in version 1.0 .* did you mean quant_tensor",
    ),
    "wrong hook argument": (f"{HOOKS}\n@hookimpl\ndef schemes(registry): return {{}}", "schemes.*registry"),
    "panics": ("class PanicException(BaseException): pass\nraise PanicException('rust')", "PanicException: rust"),
    "hook raises": (f"{HOOKS}\n@hookimpl\ndef schemes(): raise KeyError('x')", "KeyError"),
    "hook exits": (f"{HOOKS}\n@hookimpl\ndef schemes(): raise SystemExit('bye')", "SystemExit: bye"),
    "no version": ("AUTO_ROUND_API = 1.0", 'AUTO_ROUND_API is 1.0; it is written as "1.0"'),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_is_one_line_and_the_others_work(site, case, caplog, sources):
    source, reason = BROKEN[case]
    site.add("autoround-acme", f"{sources.declaring('acme_before')}\n{source}")
    site.add("autoround-emca", sources.declaring("emca_fp5"))
    before = list(declarations())
    registry = site.registry(script=True)
    line = registry.report()[1]
    assert (line.name, line.distribution, line.version, line.state) == ("acme", "autoround-acme", "1.0", "broken")
    assert re.search(reason, line.reason)
    assert "\n" not in line.reason
    assert "Traceback" in line.traceback
    assert registry.data_type_names() == ["emca_fp5"]
    assert [d.names for d in declarations() if d not in before] == [("emca_fp5",)]
    assert len(caplog.records) == 1
    with pytest.raises(
        PluginError, match=r"acme_before is asked of plugin acme \(autoround-acme 1.0\), which is broken"
    ):
        registry.data_type("acme:acme_before")


def test_stale_metadata_whose_module_is_gone(site, sources):
    site.add("autoround-acme", module="acme_there")
    (site.folder / "acme_there.py").unlink()
    site.add("autoround-emca", sources.declaring("emca_fp5"))
    registry = site.registry()
    line = registry.report()[1]
    assert line.state == "broken"
    assert line.reason == (
        "its metadata names the module acme_there, which is not there: "
        "pip install --force-reinstall autoround-acme, or pip uninstall it."
    )
    assert registry.data_type_names() == ["emca_fp5"]


def test_a_dependency_that_is_gone_is_not_taken_for_the_plugins_own_module(site):
    site.add("autoround-acme", "import autoround_acme_kernels")
    assert site.report("acme").reason == "ModuleNotFoundError: No module named 'autoround_acme_kernels'"


@pytest.mark.parametrize("value", ["not a module!", "autoround_acme:nothing", ""])
def test_an_entry_point_that_leads_nowhere(site, sources, value):
    site.add("autoround-acme", sources.declaring("acme_fp5"))
    (site.folder / "autoround_acme-1.0.dist-info/entry_points.txt").write_text(f"[auto_round.dtypes]\nacme = {value}\n")
    site.add("autoround-emca", sources.declaring("emca_fp5"))
    registry = site.registry()
    assert registry.data_type_names() == ["emca_fp5"]
    told = [line.reason for line in registry.report() if line.name == "acme"] or registry.warnings
    assert told
    assert all(told)


@pytest.mark.parametrize("where", ["while it is imported", "in a hook"])
def test_a_slow_plugin_is_named_and_works(site, monkeypatch, sources, where):
    slow = "import acme_clock\nacme_clock.wait()\n" + sources.declaring("acme_fp5")
    if where == "in a hook":
        hook = "import acme_clock\n@hookimpl\ndef quant_tensor():\n    acme_clock.wait()\n    return []\n"
        slow = HOOKS + hook + sources.declaring("acme_fp5")
    site.add("autoround-acme", slow, acme_clock="waited = []\ndef wait(): waited.append(1)")
    site.add("autoround-emca", sources.declaring("emca_fp5"))
    acme_clock, passed = importlib.import_module("acme_clock"), loading.time.perf_counter
    monkeypatch.setattr(loading.time, "perf_counter", lambda: passed() + 2.34 * len(acme_clock.waited))
    registry = site.registry()
    _, acme, emca = registry.report()
    assert (acme.state, acme.reason, acme.data_types) == ("loaded", "", ("acme_fp5",))
    (note,) = acme.notes
    assert note.startswith("it took 2.3 s to load, and every listing waits for that: name what is heavy in Lazy rec")
    assert emca.notes == ()


def test_an_interrupt_is_not_swallowed_and_loading_starts_over(site, monkeypatch):
    site.add("autoround-acme", "import os\nif 'ACME_STOP' in os.environ: raise KeyboardInterrupt")
    registry = site.registry()
    monkeypatch.setenv("ACME_STOP", "1")
    with pytest.raises(KeyboardInterrupt):
        registry.report()
    monkeypatch.delenv("ACME_STOP")
    assert [r.state for r in registry.report()] == ["loaded", "empty"]


@pytest.mark.parametrize("source", ["raise RuntimeError('no luck')", 'AUTO_ROUND_API = "9.0"'])
def test_strict_raises_again(site, monkeypatch, source):
    site.add("autoround-acme", source)
    monkeypatch.setenv("AUTO_ROUND_STRICT_PLUGINS", "1")
    registry = site.registry()
    for _ in range(2):
        with pytest.raises((RuntimeError, PluginError), match=r"no luck|9\.0"):
            registry.report()


@pytest.mark.parametrize(
    ("ours", "theirs", "state", "advice"),
    [
        ((1, 0), None, "loaded", ""),
        ((1, 3), None, "loaded", ""),
        ((1, 3), "1.2", "loaded", ""),
        ((1, 3), "1.4", "refused", "--upgrade autoround-core"),
        ((1, 3), "2.0", "refused", "--upgrade autoround-core"),
        ((2, 0), "1.3", "refused", "--upgrade autoround-acme"),
    ],
)
def test_versions_of_the_interface(site, monkeypatch, ours, theirs, state, advice, sources):
    monkeypatch.setattr(loading.hookspecs, "API_VERSION", ours)
    stated = "" if theirs is None else f'AUTO_ROUND_API = "{theirs}"\n'
    site.add("autoround-acme", stated + sources.declaring("acme_fp5"))
    line = site.report("acme")
    assert line.state == state
    assert advice in line.reason
    assert line.data_types == (("acme_fp5",) if state == "loaded" else ())
    assert not [d for d in declarations() if d.names == ("acme_fp5",)] or state == "loaded"


def test_a_refused_plugin_says_so_when_asked(site, sources):
    site.add("autoround-mxfp", 'AUTO_ROUND_API = "9.0"\n' + sources.schemes("MXFP4"))
    with pytest.raises(PluginError, match=r"installed but refused: it is made for version 9\.0"):
        site.registry().scheme("mxfp4")


def test_an_entry_point_may_name_an_object(site):
    source = (
        f"{HOOKS}AUTO_ROUND_API = API\nclass Plugin:\n    @hookimpl\n"
        "    def quant_tensor(self): return [LazyDataType('acme_fp5', 'a:b')]\nplugin = Plugin()\n"
    )
    for number, (stated, state) in enumerate({"1.0": "loaded", "2.0": "refused"}.items()):
        site.add(f"acme-{number}", source.replace("API = API", f"API = {stated!r}"))
        (site.folder / f"acme_{number}-1.0.dist-info/entry_points.txt").write_text(
            f"[auto_round.dtypes]\nacme = acme_{number}:plugin\n"
        )
        (line,) = site.registry(allow=[f"acme-{number}"]).report()[1 + number : 2 + number]
        assert line.state == state


def test_a_failure_given_by_hand_is_raised_and_leaves_nothing(make_module, sources):
    from auto_round.plugins import Registry

    registry = Registry(entry_points=False)
    with pytest.raises(ContractError, match="plugin odd cannot be registered: schemes\\(\\) returned 3"):
        registry.register(make_module("odd", f"{HOOKS}\n@hookimpl\ndef schemes(): return 3"))
    with pytest.raises(PluginError, match="cannot be registered: ZeroDivisionError"):
        registry.register(make_module("odd", f"{HOOKS}\n@hookimpl\ndef schemes(): 1/0"))
    assert [r.name for r in registry.report()] == ["core"]
    registry.register(make_module("odd", sources.offering("acme_fp5")))
    assert registry.data_type_names() == ["acme_fp5"]


def test_what_a_plugin_prints_is_no_answer_of_ours(site, sources, capsys):
    """Listings with --json are read by programs."""
    loud = "print('imported')\n" + sources.offering("acme_fp5").replace("    return", "    print('asked')\n    return")
    site.add("autoround-acme", loud, acme_math="print('needed')\n" + sources.data_type("acme_fp5"))
    registry = site.registry()
    assert registry.data_type_names() == ["acme_fp5"]
    assert capsys.readouterr() == ("", "imported\nasked\n")
    registry.data_type("acme_fp5")
    assert capsys.readouterr() == ("", "needed\n")
    print("ours")
    assert capsys.readouterr().out == "ours\n"
