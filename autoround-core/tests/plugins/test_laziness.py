# SPDX-License-Identifier: Apache-2.0
"""What is imported when, seen from a fresh process."""

import json
import os
import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "numpy", "safetensors", "datasets"}


def run(program, folder, **environment):
    """The JSON a program prints, in a process of its own."""
    paths = os.pathsep.join(p for p in (str(folder), os.environ.get("PYTHONPATH")) if p)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, **environment},
    )
    return json.loads(done.stdout)


LOADED = "import json, sys; print(json.dumps(sorted(sys.modules)))"


def test_importing_core_imports_no_plugin(site, sources):
    site.add("autoround-acme", sources.offering("acme_fp5"))
    loaded = set(run(f"import auto_round, auto_round.schemes, auto_round.data_type; {LOADED}", site.folder))
    assert not loaded & HEAVY
    assert not loaded & {"pluggy", "autoround_acme"}


def test_making_a_registry_does_nothing_yet(site, sources):
    site.add("autoround-acme", sources.offering("acme_fp5"))
    loaded = set(run(f"from auto_round.plugins import default_registry; default_registry(); {LOADED}", site.folder))
    assert "autoround_acme" not in loaded


def test_listing_imports_plugins_and_nothing_heavy(site, sources):
    site.add("autoround-acme", sources.offering("acme_fp5"), acme_math="import torch")
    program = f"from auto_round.plugins import default_registry; default_registry().report(); {LOADED}"
    loaded = set(run(program, site.folder, AUTO_ROUND_DTYPES="acme"))
    assert "autoround_acme" in loaded
    assert "acme_math" not in loaded
    assert not loaded & HEAVY


def test_asking_about_the_other_distribution_imports_no_plugin_manager(site):
    program = f"from auto_round.plugins.other_distribution import other_distribution; other_distribution(); {LOADED}"
    assert "pluggy" not in run(program, site.folder)


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_workers_have_the_same_plugins(site, sources, method):
    if method == "fork" and not hasattr(os, "fork"):
        pytest.skip("no fork here")
    site.add("autoround-acme", sources.declaring("acme_fp5"))
    (site.folder / "acme_program.py").write_text(
        "import json, multiprocessing, sys\n"
        "from auto_round.plugins import default_registry\n"
        "def ask(_=None):\n"
        "    registry = default_registry()\n"
        "    return [registry.digest(), registry.data_type('acme_fp5').name, registry.provenance('acme_fp5').version]\n"
        "if __name__ == '__main__':\n"
        "    before = ask()\n"
        "    with multiprocessing.get_context(sys.argv[1]).Pool(1) as pool:\n"
        "        print(json.dumps([before, pool.apply(ask)]))\n"
    )
    program = (
        f"import runpy, sys; sys.argv = ['acme_program.py', {method!r}]; "
        "runpy.run_module('acme_program', run_name='__main__', alter_sys=True)"
    )
    before, after = run(program, site.folder, AUTO_ROUND_DTYPES="acme")
    assert before == after
    assert before[1:] == ["acme_fp5", "1.0"]
