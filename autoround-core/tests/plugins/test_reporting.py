# SPDX-License-Identifier: Apache-2.0
from auto_round.plugins import PluginReport


def test_a_working_plugin(site, sources):
    site.add("autoround-acme", sources.declaring("acme_fp5") + sources.schemes("ACME5"), version="1.2")
    assert site.report("acme") == PluginReport(
        "acme", "autoround-acme", "1.2", "loaded", data_types=("acme_fp5",), schemes=("ACME5",)
    )


def test_a_module_that_offers_nothing_is_told_so(site):
    site.add("autoround-acme", "x = 1")
    line = site.report("acme")
    assert line.state == "empty"
    assert line.reason == "it has no hooks and declares no data types: mark a function with hookimpl or register_dtype."


def test_a_hook_without_its_decorator(site):
    site.add("autoround-acme", "def schemes(): return {}")
    line = site.report("acme")
    assert line.state == "empty"
    assert line.reason.startswith("its schemes offer nothing: is the decorator auto_round.hookspecs.hookimpl there?")


def test_notes_of_the_installation(site, tmp_path):
    site.add("autoround-acme", "x = 1")
    site.add("autoround-acme", "x = 1", version="0.9")
    line = site.report("acme")
    assert "installed twice" in line.notes[0]
    assert line.version in {"1.0", "0.9"}
