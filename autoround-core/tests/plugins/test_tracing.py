# SPDX-License-Identifier: Apache-2.0
import logging

import pluggy


def test_every_hook_call_is_logged(site, sources, monkeypatch, caplog):
    monkeypatch.setenv("AUTO_ROUND_TRACE", "1")
    caplog.set_level(logging.INFO)
    site.add("autoround-acme", sources.schemes("ACME4") + "\n@hookimpl\ndef exporters(): raise ValueError")
    site.registry().report()
    traced = [r.getMessage() for r in caplog.records if r.name == "auto_round.plugins.tracing"]
    assert [t.split(" took ")[0] for t in traced] == [
        "plugin core: exporters()",
        "plugin acme: schemes()",
        "plugin acme: exporters()",
    ]
    assert all(" ms" in t for t in traced)
    assert traced[-1].endswith("ms, ValueError")


def test_off_it_touches_nothing(site, sources, monkeypatch):
    def fail(*args):
        raise AssertionError

    monkeypatch.setattr(pluggy.PluginManager, "add_hookcall_monitoring", fail)
    site.add("autoround-acme", sources.schemes("ACME4"))
    assert site.report("acme").state == "loaded"
