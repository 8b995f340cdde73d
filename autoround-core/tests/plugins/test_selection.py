# SPDX-License-Identifier: Apache-2.0
import pytest

from auto_round.errors import PluginError
from auto_round.plugins import Registry
from auto_round.plugins.selection import Selection


@pytest.fixture
def two(site, sources):
    site.add("autoround-acme", sources.declaring("acme_fp5"))
    site.add("autoround-emca", sources.declaring("emca_fp5"))
    return site


@pytest.mark.parametrize(
    ("text", "states"),
    [
        (None, ["loaded", "loaded"]),
        ("acme", ["loaded", "blocked"]),
        ("AUTOROUND_ACME", ["loaded", "blocked"]),
        ("-acme", ["blocked", "loaded"]),
        ("acme,emca,-autoround-acme", ["blocked", "loaded"]),
        ("", ["blocked", "blocked"]),
        (" acme , emca ", ["loaded", "loaded"]),
    ],
)
def test_environment(two, monkeypatch, text, states):
    if text is not None:
        monkeypatch.setenv("AUTO_ROUND_DTYPES", text)
    report = two.registry().report()
    assert [r.state for r in report] == ["loaded", *states]  # core is always there
    assert all(("AUTO_ROUND_DTYPES" in r.reason) == (r.state == "blocked") for r in report)


def test_arguments_win_over_the_environment(two, monkeypatch):
    monkeypatch.setenv("AUTO_ROUND_DTYPES", "")
    assert two.registry(allow=["emca"]).data_type_names() == ["emca_fp5"]
    assert two.registry(block=["emca"]).data_type_names() == ["acme_fp5"]
    assert two.registry(allow=[]).data_type_names() == []


def test_a_name_that_matches_nothing_is_a_warning(two, monkeypatch, caplog):
    monkeypatch.setenv("AUTO_ROUND_DTYPES", "acne,emca")
    (warning,) = two.registry().warnings
    assert "'acne'" in warning
    assert "did you mean acme?" in warning
    assert warning in caplog.text


def test_a_blocked_plugin_is_not_imported(site):
    site.add("autoround-acme", "raise RuntimeError('imported')")
    assert site.report("acme", block=["acme"]).state == "blocked"


def test_asking_for_what_only_a_blocked_plugin_has(site, sources):
    site.add("autoround-mxfp", sources.schemes("MXFP4"))
    with pytest.raises(
        PluginError, match=r"comes with autoround-mxfp 1.0, which is installed but blocked: .*does not allow"
    ):
        site.registry(allow=[]).scheme("MXFP4")
    with pytest.raises(PluginError, match="is blocked: the lists given to Registry"):
        site.registry(block=["mxfp"]).scheme("mxfp:ANY")


def test_a_plugin_given_by_hand_is_not_selected(monkeypatch, make_module, sources):
    monkeypatch.setenv("AUTO_ROUND_DTYPES", "")
    registry = Registry(entry_points=False)
    registry.register(make_module("given_by_hand", sources.declaring("hand4")))
    assert registry.data_type_names() == ["hand4"]
    assert registry.warnings == []


def test_one_name_is_not_read_letter_by_letter(two):
    assert Selection.of("int", "fp8") == Selection.of(["int"], ["fp8"])
