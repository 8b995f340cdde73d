# SPDX-License-Identifier: Apache-2.0
import pytest

from auto_round.errors import ConflictError, UnknownNameError

NAMES = ("ACME4", "acme-4")


@pytest.fixture
def rivals(site, sources):
    site.add("acme-one", sources.schemes("SAME4", "ONE4"), version="1.0", plugin="one")
    site.add("acme-two", sources.schemes("same-4", "TWO4").replace("same-4", "same4"), version="2.0", plugin="two")
    return site


def test_neither_of_two_wins(rivals):
    registry = rivals.registry()
    with pytest.raises(ConflictError) as caught:
        registry.scheme("Same4")
    for part in ("plugin one (acme-one 1.0) as acme-one:SAME4", "plugin two (acme-two 2.0) as acme-two:same4"):
        assert part in str(caught.value)
    assert registry.scheme("ONE4").data_type == "acme_fp5"


@pytest.mark.parametrize("name", ["acme-one:SAME4", "one:same4", "ACME_ONE:Same4", "acme-two:SAME4", "two:SAME4"])
def test_the_qualified_form_always_works(rivals, name):
    assert rivals.registry().scheme(name).data_type == "acme_fp5"


def test_listings_show_the_conflict_and_names_can_all_be_asked_for(rivals):
    registry = rivals.registry()
    assert registry.scheme_names() == ["acme-one:SAME4", "ONE4", "acme-two:same4", "TWO4"]
    assert all(registry.scheme(name) for name in registry.scheme_names())
    assert {(e.name, e.state) for e in registry.listing("scheme")} == {
        ("SAME4", "conflict"),
        ("ONE4", "ready"),
        ("same4", "conflict"),
        ("TWO4", "ready"),
    }
    one, two = registry.report()[1:]
    assert (one.state, two.state) == ("conflict", "conflict")
    assert one.reason == "scheme SAME4 is also claimed by plugin two (acme-two 2.0), ask for acme-one:SAME4"


def test_blocking_one_settles_it(rivals):
    assert rivals.registry(block=["two"]).scheme_names() == ["SAME4", "ONE4"]


@pytest.mark.parametrize("kind", ["data_type", "output_format", "packing"])
def test_every_kind_of_name(site, kind):
    record, hook, extra = {
        "data_type": ("LazyDataType", "quant_tensor", ""),
        "output_format": ("LazyFormat", "exporters", ""),
        "packing": ("LazyPacking", "exporters", ", format='auto_round'"),
    }[kind]
    for name in ("one", "two"):
        site.add(
            f"acme-{name}",
            f"from auto_round.hookspecs import {record}, hookimpl\n"
            f"@hookimpl\ndef {hook}(): return [{record}('same', 'a:b'{extra})]",
            plugin=name,
        )
    registry = site.registry()
    with pytest.raises(ConflictError, match=r"acme-one:same and .* acme-two:same"):
        getattr(registry, kind)("same")
    assert registry.packings("auto_round") == []
    assert len(registry.warnings) == (2 if kind == "packing" else 0)


def test_kinds_do_not_meet(site, sources):
    site.add("acme-one", sources.schemes("same"), plugin="one")
    site.add("acme-two", sources.declaring("same"), plugin="two")
    registry = site.registry()
    assert registry.scheme("same")
    assert registry.data_type("same")
    assert [r.state for r in registry.report()] == ["loaded"] * 3


def test_a_name_may_contain_a_colon(site, sources):
    site.add("autoround-acme", sources.schemes("ACME:Q1", "other:Q2", "Q3"))
    site.add("autoround-zeta", sources.schemes("ACME:Q3", "Q1"), plugin="zeta")
    registry = site.registry()
    for name in ("acme:q1", "ACME:Q1", "autoround-acme:ACME:Q1", "acme:acme:q1", "other:Q2", "acme:other:Q2"):
        assert registry.scheme(name)
    # A qualified name means that plugin's own, whatever others put into theirs.
    assert registry.scheme("acme:Q3") is registry.scheme("Q3")
    assert registry.scheme("zeta:ACME:Q3") is not registry.scheme("Q3")
    with pytest.raises(
        UnknownNameError, match=r"plugin acme \(autoround-acme 1.0\) offers no scheme 'Q9'; did you mean Q3"
    ):
        registry.scheme("acme:Q9")


def test_two_plugins_of_one_name_and_two_of_one_distribution(site, sources):
    site.add("acme-one", sources.schemes("SAME4"), plugin="acme")
    site.add("acme-two", sources.schemes("SAME4"), plugin="acme")
    registry = site.registry()
    with pytest.raises(ConflictError, match=r"acme-one:SAME4 and .* acme-two:SAME4"):
        registry.scheme("acme:SAME4")
    assert registry.scheme("acme-one:SAME4")
    (site.folder / "acme_pair.py").write_text(sources.schemes("PAIR4"))
    (site.folder / "acme_pair_too.py").write_text(sources.schemes("PAIR4"))
    (site.folder / "acme_one-1.0.dist-info/entry_points.txt").write_text(
        "[auto_round.dtypes]\na = acme_pair\nb = acme_pair_too\n"
    )
    registry = site.registry(allow=["acme-one"])
    with pytest.raises(ConflictError, match=r"as a:PAIR4 and .* as b:PAIR4"):
        registry.scheme("acme-one:PAIR4")
    assert registry.scheme("b:PAIR4")
