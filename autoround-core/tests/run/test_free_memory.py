# SPDX-License-Identifier: Apache-2.0
"""What is free, from files as Linux shows them."""

import pytest

from auto_round.run import free_memory as room
from auto_round.run.free_memory import free_memory

MEMINFO = "MemTotal:       16000000 kB\nMemFree:         1000000 kB\nMemAvailable:    4000000 kB\n"
FREE = 4000000 * 1024


@pytest.fixture
def system(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "PROC", tmp_path / "proc")
    monkeypatch.setattr(room, "GROUPS", tmp_path / "groups")
    (tmp_path / "groups" / "a" / "b").mkdir(parents=True)
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text(MEMINFO)
    (tmp_path / "proc" / "self" / "cgroup").write_text("4:memory:/elsewhere\n0::/a/b\n")

    def limit(group, most, used, files):
        folder = tmp_path / "groups" / group
        (folder / "memory.max").write_text(f"{most}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {files}\n")

    return limit


def test_without_limits_it_is_what_the_system_can_give(system):
    assert free_memory() == FREE
    system("a/b", "max", 100, 0)
    assert free_memory() == FREE


def test_the_tightest_group_above_the_process_counts_and_files_at_hand_do_not(system):
    system("a/b", 2000, 900, 100)
    assert free_memory() == 1200
    system("a", 1000, 950, 10)
    assert free_memory() == 60
    system("a", 1000, 1100, 0)
    assert free_memory() == 0


def test_a_system_that_does_not_tell_is_believed_to_have_enough(system, tmp_path):
    (tmp_path / "proc" / "self" / "cgroup").unlink()
    assert free_memory() == FREE
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 16 kB\n")
    assert free_memory() is None
    (tmp_path / "proc" / "meminfo").unlink()
    assert free_memory() is None
