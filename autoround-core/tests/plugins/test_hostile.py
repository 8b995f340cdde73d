# SPDX-License-Identifier: Apache-2.0
"""An environment in which everything that can be wrong with a plugin is wrong with one, and one is right."""

import json
import os
import subprocess
import sys

import pytest

FUNCTION = "from auto_round.data_type.register import register_dtype\n"
HOOKS = "from auto_round.hookspecs import LazyDataType, hookimpl\n"

HOSTILE = {
    "raises": ("raise RuntimeError('no luck')", "broken", "RuntimeError: no luck"),
    "exits": ("raise SystemExit('bye')", "broken", "it ended the program (SystemExit: bye) instead of loading."),
    "panics": ("class Panic(BaseException): pass\nraise Panic('rust')", "broken", "Panic: rust"),
    "signature": (f"{FUNCTION}@register_dtype('sig4')\ndef f(tensor, bitz=4): ...", "broken", "asks for 'bitz'"),
    "unknown": (f"{HOOKS}@hookimpl\ndef data_types(): return []", "broken", "hook data_types does not exist"),
    "returns": (f"{HOOKS}@hookimpl\ndef quant_tensor(): return 3", "broken", "quant_tensor() returned 3 (int)"),
    "newer": ("AUTO_ROUND_API = '99.0'", "refused", "pip install --upgrade autoround-core"),
    "empty": ("x = 1", "empty", "it has no hooks and declares no data types"),
    "attribute": ("def __dir__(): return ['a']\ndef __getattr__(name): raise OSError('disk')", "broken", "OSError"),
    "twin": (f"{HOOKS}@hookimpl\ndef quant_tensor(): return [LazyDataType('twin4', 'a:b')]", "conflict", "other-twin"),
    "other-twin": (f"{FUNCTION}@register_dtype('twin4')\ndef f(tensor): ...", "conflict", "plugin twin"),
    "prints": (f"{FUNCTION}print('{{}}')\n@register_dtype('prints4')\ndef f(tensor): ...", "loaded", ""),
    "slow": (f"{FUNCTION}import time; time.sleep(1.1)\n@register_dtype('slow4')\ndef f(tensor): ...", "loaded", ""),
}

PROGRAM = """
import json, sys, warnings
import auto_round
silent = sorted(name for name in sys.modules if name.startswith("autoround_"))
from auto_round.errors import AutoRoundError
from auto_round.plugins import default_registry
registry = default_registry()
report = [[line.name, line.state, line.reason, list(line.notes)] for line in registry.report()]
asked = {}
for name in sys.argv[1:]:
    try:
        registry.data_type(f"autoround-{name}:anything")
    except AutoRoundError as error:
        asked[name] = str(error)
good, _, _ = registry.data_type("good4").quant_tensor("a tensor")
print(json.dumps([silent, report, asked, good, registry.warnings]))
"""


@pytest.fixture
def everything(site, sources):
    for name, (source, _, _) in HOSTILE.items():
        site.add(f"autoround-{name}", source, plugin=name)
    site.add("autoround-gone")
    (site.folder / "autoround_gone.py").unlink()
    site.add("autoround-old", sources.declaring("old4"), version="2.0")
    stale = type(site)(site.folder / "stale")
    stale.add("autoround-old", "raise RuntimeError('the stale copy')", version="1.0")
    site.add("autoround-good", sources.declaring("good4").replace("return tensor", "return f'{tensor}, rounded'"))
    return site


def start(site, *arguments):
    paths = [site.folder, site.folder / "stale", *filter(None, [os.environ.get("PYTHONPATH")])]
    names = ",".join([*HOSTILE, "gone", "old", "good"])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "AUTO_ROUND_DTYPES": names}
    command = [sys.executable, "-W", "error", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_core_and_the_good_plugin_work_and_each_of_the_others_is_told_apart(everything):
    done = start(everything, "-c", PROGRAM, *HOSTILE, "gone")
    assert done.returncode == 0, done.stderr
    imported, report, asked, good, warnings = json.loads(done.stdout)
    assert imported == []  # `import auto_round` asks no plugin anything
    assert good == "a tensor, rounded"
    told = {name: (state, reason, notes) for name, state, reason, notes in report}
    for name, (_, state, reason) in HOSTILE.items():
        assert told[name][0] == state, name
        assert reason in told[name][1], name
        assert "\n" not in told[name][1]
        assert f"autoround-{name} 1.0" in asked[name]
    assert told["gone"][0] == "broken"
    assert "pip install --force-reinstall autoround-gone" in told["gone"][1]
    assert told["old"][0] == "loaded"
    assert "2.0" in told["old"][2][0]
    assert "1.0" in told["old"][2][0]
    assert any("autoround-old is installed twice" in warning for warning in warnings)
    assert "s to load" in told["slow"][2][0]
    assert told["core"] == told["good"] == ("loaded", "", [])


@pytest.mark.slow
def test_the_command_line_shows_them_all(everything):
    done = start(everything, "-c", "from auto_round.cli.main import main; main()", "plugins", "--json")
    assert done.returncode == 0, done.stderr
    listed = {entry["name"]: entry for entry in json.loads(done.stdout)["plugins"]}
    assert {*HOSTILE, "gone", "old", "good", "core"} <= listed.keys()
    assert [entry["name"] for entry in listed.values() if entry["state"] == "broken" and not entry["traceback"]] == []
