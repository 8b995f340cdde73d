# SPDX-License-Identifier: Apache-2.0
"""The directory of known distributions: which package to install for a name that nothing installed offers.

It is data, `resources/distributions.json`, and the only place where core mentions distributions that extend it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import resources

from auto_round.names import normalise
from auto_round.plugins.records import Kind

__all__ = ["KnownDistribution", "bringing", "known_distributions", "plain_names", "what_to_install"]

_FIELDS: dict[Kind, str] = {"data type": "data_types", "scheme": "schemes", "format": "formats", "packing": "packings"}


@dataclass(frozen=True)
class KnownDistribution:
    """A distribution and the names it brings, as patterns of `fnmatch`."""

    name: str
    summary: str
    data_types: tuple[str, ...] = ()
    schemes: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    packings: tuple[str, ...] = ()

    def patterns(self, kind: Kind) -> tuple[str, ...]:
        """The patterns of one kind."""
        patterns: tuple[str, ...] = getattr(self, _FIELDS[kind])
        return patterns

    def brings(self, kind: Kind, name: str) -> bool:
        """Whether a name is among them."""
        return any(fnmatchcase(normalise(name), normalise(pattern)) for pattern in self.patterns(kind))


@functools.cache
def known_distributions() -> tuple[KnownDistribution, ...]:
    """All of them; the first is what to begin with."""
    text = resources.files("auto_round").joinpath("resources/distributions.json").read_text(encoding="utf-8")
    return tuple(
        KnownDistribution(name, entry["summary"], **{field: tuple(entry.get(field, ())) for field in _FIELDS.values()})
        for name, entry in json.loads(text).items()
    )


def bringing(kind: Kind, names: Iterable[str]) -> list[KnownDistribution]:
    """The distributions known to bring the first of `names` that any is known to bring."""
    for name in names:
        found = [distribution for distribution in known_distributions() if distribution.brings(kind, name)]
        if found:
            return found
    return []


def plain_names(kind: Kind) -> list[str]:
    """The names of a kind that the directory spells out, without those that are only patterns."""
    return [p for d in known_distributions() for p in d.patterns(kind) if not set(p) & set("*?[")]


def what_to_install() -> str:
    """What to tell somebody who has core alone."""
    known = known_distributions()
    listed = ", ".join(f"{d.name} ({d.summary})" for d in known)
    return f"no data types are installed; begin with: pip install {known[0].name}. There are {listed}."
