# SPDX-License-Identifier: Apache-2.0
import shutil
import sys

from auto_round.plugins.discovery import discover
from auto_round.testing.distributions import FakeDistribution, importable


def test_metadata_alone_names_the_plugins(site):
    site.add("autoround-acme", "raise RuntimeError('imported')")
    sources, warnings = discover([str(site.folder)])
    assert [(s.name, s.distribution, s.version, s.module) for s in sources] == [
        ("acme", "autoround-acme", "1.0", "autoround_acme")
    ]
    assert warnings == []
    assert "autoround_acme" not in sys.modules


def test_order_is_that_of_names(site):
    for name in ("zeta", "alpha", "mid"):
        site.add(name)
    assert [s.name for s in discover([str(site.folder)])[0]] == ["alpha", "mid", "zeta"]


def test_a_stale_copy_is_ignored_and_both_paths_are_told(tmp_path):
    new, old = tmp_path / "new", tmp_path / "old"
    FakeDistribution("autoround-acme", "2.0", {"acme": "acme_new"}).write(new)
    FakeDistribution("AutoRound_Acme", "1.0", {"acme": "acme_old"}).write(old)
    sources, warnings = discover([str(new), str(old)])
    assert [(s.version, s.module) for s in sources] == [("2.0", "acme_new")]
    assert str(new) in sources[0].notes[0]
    assert str(old) in sources[0].notes[0]
    assert warnings == list(sources[0].notes)


def test_a_copy_of_the_same_version_is_a_note_and_no_warning(tmp_path):
    for folder in ("one", "two"):
        FakeDistribution("autoround-acme", "1.0", {"acme": "acme"}).write(tmp_path / folder)
    sources, warnings = discover([str(tmp_path / "one"), str(tmp_path / "two")])
    assert len(sources) == 1
    assert len(sources[0].notes) == 1
    assert warnings == []


def test_one_folder_twice_on_the_path_is_nothing_special(site):
    site.add("autoround-acme")
    sources, warnings = discover([str(site.folder), str(site.folder)])
    assert len(sources) == 1
    assert not sources[0].notes
    assert not warnings


def test_an_active_copy_without_plugins_hides_a_stale_one_with_them(tmp_path):
    new, old = tmp_path / "new", tmp_path / "old"
    FakeDistribution("autoround-acme", "2.0").write(new)
    FakeDistribution("autoround-acme", "1.0", {"acme": "acme_old"}).write(old)
    sources, warnings = discover([str(new), str(old)])
    assert sources == []
    assert "2.0" in warnings[0]


def test_metadata_nobody_can_read_hides_nothing_else(site):
    site.add("autoround-acme")
    bad = site.folder / "bad-1.0.dist-info"
    bad.mkdir()
    (bad / "entry_points.txt").write_bytes(b"[auto_round.dtypes]\nbad = \xff\xfe\n")
    sources, warnings = discover([str(site.folder)])
    assert [s.name for s in sources] == ["acme"]
    assert len(warnings) == 1
    assert str(site.folder) in warnings[0]


def test_a_zipped_distribution_is_found_and_loads(tmp_path, sources):
    FakeDistribution(
        "autoround-zip", plugins={"zip": "acme_zipped"}, modules={"acme_zipped": sources.declaring("zip4")}
    ).write(tmp_path / "tree")
    archive = shutil.make_archive(str(tmp_path / "plugin"), "zip", tmp_path / "tree")
    with importable([archive]):
        from auto_round.plugins import Registry

        assert Registry(path=[archive]).data_type_names() == ["zip4"]


def test_the_kit_writes_packages_in_any_order(tmp_path):
    modules = {
        "acme_pack.deep.inner": "x = 2",
        "acme_pack": "from acme_pack.deep.inner import x",
        "acme_pack.deep": "y = 3",
    }
    with FakeDistribution("acme-pack", modules=modules).installed(tmp_path):
        import acme_pack
        import acme_pack.deep

        assert (acme_pack.x, acme_pack.deep.y) == (2, 3)
    assert "acme_pack" not in sys.modules
