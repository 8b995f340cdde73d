# SPDX-License-Identifier: Apache-2.0
"""Which plugins are installed, read from metadata; none of their code runs.

A distribution that lies on the path twice (a stale copy, an editable install beside a wheel) counts once: the copy that
Python's own lookup by name finds first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from importlib_metadata import Distribution, EntryPoint

from auto_round.names import normalise
from auto_round.plugins.records import Source

__all__ = ["GROUP", "discover"]

GROUP = "auto_round.dtypes"


def discover(path: Sequence[str] | None = None) -> tuple[list[Source], list[str]]:
    """The installed plugins in the order of their distributions' names, and what is odd about the installation.

    Args:
        path: folders to look in, instead of `sys.path`.
    """
    where: dict[str, Any] = {} if path is None else {"path": list(path)}
    copies: dict[str, list[Distribution]] = {}
    sources: list[Source] = []
    warnings: list[str] = []
    for distribution in Distribution.discover(**where):
        try:
            if _entry_points(distribution):
                copies.setdefault(normalise(distribution.name), []).append(distribution)
        except Exception as error:  # noqa: BLE001 - metadata is written by anybody, and one must not hide the others
            warnings.append(_unreadable(distribution, error))
    for _, found in sorted(copies.items()):
        active = next(iter(Distribution.discover(name=found[0].name, **where)), found[0])
        try:
            notes = _notes(active, found)
            sources += _sources(active, notes)
        except Exception as error:  # noqa: BLE001 - as above
            warnings.append(_unreadable(active, error))
            continue
        if not _entry_points(active) or any(copy.version != active.version for copy in found):
            warnings += notes
    return sources, warnings


def _sources(distribution: Distribution, notes: list[str]) -> list[Source]:
    return [
        Source(
            name=entry_point.name,
            distribution=distribution.name,
            version=distribution.version,
            module=entry_point.value.partition(":")[0].strip(),
            load=entry_point.load,
            notes=tuple(notes),
        )
        for entry_point in sorted(_entry_points(distribution), key=lambda e: e.name)
    ]


def _unreadable(distribution: Distribution, error: Exception) -> str:
    return f"the metadata of a distribution in {_place(distribution)} cannot be read, so it is left out: {error!r}"


def _entry_points(distribution: Distribution) -> list[EntryPoint]:
    return [e for e in distribution.entry_points if e.group == GROUP]


def _place(distribution: Distribution) -> str:
    return str(distribution.locate_file(""))


def _notes(active: Distribution, copies: list[Distribution]) -> list[str]:
    seen = {(_place(active), active.version)}
    notes = []
    for copy in copies:
        if (_place(copy), copy.version) in seen:
            continue
        seen.add((_place(copy), copy.version))
        notes.append(
            f"{active.name} is installed twice: {active.version} in {_place(active)} is used, "
            f"{copy.version} in {_place(copy)} is ignored."
        )
    return notes
