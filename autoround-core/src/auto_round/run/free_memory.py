# SPDX-License-Identifier: Apache-2.0
"""Memory that a process can still get, on Linux; elsewhere nobody knows."""

from __future__ import annotations

from pathlib import Path

__all__ = ["free_memory"]

PROC = Path("/proc")
GROUPS = Path("/sys/fs/cgroup")


def free_memory() -> int | None:
    """Bytes that the system can give without swapping, or a control group above this process (cgroup v2) if less.

    Files the system only keeps at hand count as free: it lets go of them first. None where the system does not tell.
    """
    try:
        lines = (PROC / "meminfo").read_text(encoding="ascii").splitlines()
        own = next(line[3:] for line in _lines(PROC / "self" / "cgroup", "0::/") if line.startswith("0::"))
    except OSError:
        return None
    told = dict(line.split(":", 1) for line in lines if ":" in line)
    if "MemAvailable" not in told:
        return None
    available = int(told["MemAvailable"].split()[0]) * 1024
    group = GROUPS / own.lstrip("/")
    above = [folder for folder in (group, *group.parents) if folder.is_relative_to(GROUPS)]
    return min([available, *(left for left in map(_left_in, above) if left is not None)])


def _lines(file: Path, absent: str) -> list[str]:
    return [*(file.read_text(encoding="utf-8").splitlines() if file.exists() else ()), absent]


def _left_in(group: Path) -> int | None:
    """What a control group may still take; None if it has no limit or is none."""
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = int((group / "memory.current").read_text(encoding="ascii"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
    except OSError:
        return None
    return None if limit == "max" else max(0, int(limit) - used + int(stat.get("inactive_file", 0)))
