# SPDX-License-Identifier: Apache-2.0
"""What the doctor says of installations that are broken, each in its way."""

import json
import os
import subprocess
import sys

import pytest

from auto_round.plugins import Registry
from auto_round.plugins.diagnosis import diagnose
from auto_round.testing.distributions import FakeDistribution, importable

pytestmark = pytest.mark.slow

NAMES_NOTHING = """
from auto_round.hookspecs import LazyDataType, hookimpl
@hookimpl
def quant_tensor(): return [LazyDataType("lazy_t", "no_such_module:Thing", "nothing behind it")]
"""
FUTURE = 'AUTO_ROUND_API = "9.0"'
SCHEME = """
from auto_round.hookspecs import hookimpl
from auto_round.schemes import QuantizationScheme
@hookimpl
def schemes(): return {"SAME": QuantizationScheme(bits=4, data_type="x")}
"""

CASES = [
    ("1/0", "problem", "ZeroDivisionError", "pip install --upgrade autoround-acme"),
    (FUTURE, "problem", "pip install --upgrade autoround-core", ""),
    ("", "hint", "has no hooks", "pip uninstall autoround-acme"),
    (SCHEME, "ok", "is loaded", ""),
]


def found(folder, *distributions, **options):
    for distribution in distributions:
        distribution.write(folder)
    with importable([folder]):
        return list(diagnose(Registry(path=[str(folder)], **options)))


def acme(source, **more):
    return FakeDistribution("autoround-acme", "1.5", {"acme": "autoround_acme"}, {"autoround_acme": source}, **more)


@pytest.mark.parametrize(("source", "verdict", "told", "remedy"), CASES)
def test_each_state_has_its_remedy(tmp_path, source, verdict, told, remedy):
    (finding,) = [f for f in found(tmp_path, acme(source)) if f.subject == "plugin acme"]
    assert finding.verdict == verdict
    assert told in finding.told
    assert "autoround-acme 1.5" in finding.told
    assert remedy in finding.remedy if remedy else not finding.remedy


def test_blocked_and_contested(tmp_path):
    blocked = found(tmp_path, acme(SCHEME), block=["acme"])
    (finding,) = [f for f in blocked if f.subject == "plugin acme"]
    assert (finding.verdict, "off the list" in finding.remedy) == ("hint", True)
    other = FakeDistribution("autoround-other", "2", {"other": "autoround_other"}, {"autoround_other": SCHEME})
    contested = [f for f in found(tmp_path, other) if f.subject in ("plugin acme", "plugin other")]
    assert [f.verdict for f in contested] == ["problem", "problem"]
    assert all("DISTRIBUTION:NAME" in f.remedy for f in contested)


def test_what_is_named_and_not_there(tmp_path):
    (finding,) = [f for f in found(tmp_path, acme(NAMES_NOTHING)) if f.subject == "data type lazy_t"]
    assert finding.verdict == "problem"
    assert "no_such_module" in finding.told


def test_requirements_that_are_not_met(tmp_path):
    requires = (
        "click>=999",
        "none-such-package",
        'not-here; extra == "more"',
        'neither; python_version < "3"',
        "pluggy",
    )
    told = {f.remedy for f in found(tmp_path, acme(SCHEME, requires=requires)) if f.subject == "autoround-acme"}
    assert told == {'pip install "click>=999"', 'pip install "none-such-package"'}


def test_families_that_are_missing_are_hints(tmp_path):
    missing = [f for f in found(tmp_path, acme(SCHEME)) if f.remedy.startswith("pip install autoround-")]
    assert missing
    assert {f.verdict for f in missing} == {"hint"}


@pytest.mark.parametrize(("source", "code"), [(SCHEME, 0), ("1/0", 1)])
def test_the_exit_code_says_whether_something_is_broken(tmp_path, source, code):
    acme(source).write(tmp_path)
    paths = os.pathsep.join(p for p in (str(tmp_path), os.environ.get("PYTHONPATH")) if p)
    environment = {**os.environ, "PYTHONPATH": paths, "AUTO_ROUND_DTYPES": "acme"}
    program = "from auto_round.cli.main import main; main(prog_name='auto-round')"
    command = [sys.executable, "-W", "error", "-c", program, "doctor", "--json"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == code, done.stderr
    assert any(f["subject"] == "plugin acme" for f in json.loads(done.stdout)["findings"])
