# SPDX-License-Identifier: Apache-2.0
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


def test_no_module_of_the_name(site):
    site.add("autoround-acme", module="acme_there")
    (site.folder / "acme_there.py").unlink()
    assert site.report("acme").state == "broken"


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
