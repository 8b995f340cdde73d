# SPDX-License-Identifier: Apache-2.0
"""Which installed plugins may be used: the allow list and the block list."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from auto_round.names import did_you_mean, normalise
from auto_round.plugins.records import Source

__all__ = ["VARIABLE", "Selection"]

VARIABLE = "AUTO_ROUND_DTYPES"


@dataclass(frozen=True)
class Selection:
    """Names of plugins or of their distributions.

    Attributes:
        allow: the only ones used, None for all.
        block: never used.
        origin: where the lists come from, for messages.
    """

    allow: tuple[str, ...] | None = None
    block: tuple[str, ...] = ()
    origin: str = "the lists given to Registry"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Selection:
        """Read `AUTO_ROUND_DTYPES`: "a,b" uses only a and b, "-a" all but a, "" none; unset means all."""
        text = environment.get(VARIABLE)
        if text is None:
            return cls(origin=VARIABLE)
        items = [item.strip() for item in text.split(",") if item.strip()]
        block = tuple(item[1:].strip() for item in items if item.startswith("-"))
        allow = tuple(item for item in items if not item.startswith("-"))
        return cls(None if block and not allow else allow, block, f'{VARIABLE}="{text}"')

    def refuses(self, source: Source) -> str | None:
        """Why a plugin is not used, or None."""
        names = {normalise(source.name), normalise(source.distribution)}
        if names & set(map(normalise, self.block)):
            return f"{self.origin} blocks it."
        if self.allow is not None and not names & set(map(normalise, self.allow)):
            return f"{self.origin} does not allow it."
        return None

    def unmatched(self, sources: Iterable[Source]) -> list[str]:
        """A sentence for every listed name that no installed plugin or distribution has."""
        known = [name for source in sources for name in (source.name, source.distribution)]
        folded = set(map(normalise, known))
        return [
            f"{self.origin} names {name!r}, but no installed plugin or distribution is called that"
            f"{did_you_mean(name, known) or '.'}"
            for name in (*(self.allow or ()), *self.block)
            if normalise(name) not in folded
        ]

    @classmethod
    def of(cls, allow: Iterable[str] | None, block: Iterable[str] | None) -> Selection:
        """The lists a program gives; the environment's if it gives none."""
        if allow is None and block is None:
            return cls.from_environment()
        return cls(None if allow is None else _names(allow), _names(block or ()))


def _names(given: Iterable[str]) -> tuple[str, ...]:
    """One name stands for itself, and not for its letters."""
    return (given,) if isinstance(given, str) else tuple(given)
