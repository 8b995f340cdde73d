# SPDX-License-Identifier: Apache-2.0
"""Names to claims: which plugin answers for a name, and what happens if two want to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from auto_round.errors import ConflictError
from auto_round.names import normalise
from auto_round.plugins.records import Claim, Kind, Plugin

__all__ = ["Catalogue"]


class Catalogue:
    """What a set of plugins offers at one moment.

    A qualified name is `distribution:NAME` or `plugin:NAME`. Names may contain ":" themselves, so one is read as
    qualified only if what stands before its first ":" is a plugin or a distribution.
    """

    def __init__(self, plugins: Sequence[Plugin], declared: Iterable[Claim]) -> None:
        self.plugins = tuple(plugins)
        self._claims: dict[tuple[Kind, str], list[Claim]] = {}
        for plugin in plugins:
            for claim in plugin.claims:
                self._claims.setdefault((claim.kind, normalise(claim.name)), []).append(claim)
        for claim in declared:
            rivals = self._claims.setdefault((claim.kind, normalise(claim.name)), [])
            # What the hooks say of a name is the fuller record of what the same plugin declares under it.
            if all(rival.plugin is not claim.plugin for rival in rivals):
                rivals.append(claim)
        self._order = {plugin: n for n, plugin in enumerate(self.plugins)}
        for claims in self._claims.values():
            claims.sort(key=lambda claim: self._order[claim.plugin])

    def find(self, kind: Kind, name: str) -> Claim | None:
        """Who answers for a name, plain or qualified; None if nobody does.

        Raises:
            ConflictError: several do.
        """
        claims = self._claims.get((kind, normalise(name)), [])
        owners, rest = self.split(name)
        if owners:
            theirs = self._claims.get((kind, normalise(rest)), [])
            # The whole name comes first: a plugin may put its own name into the names it offers.
            own = [c for c in claims if c.plugin in owners] or [c for c in theirs if c.plugin in owners]
            claims = own or claims
        return self.only(kind, name, claims)

    def only(self, kind: Kind, name: str, claims: Sequence[Claim]) -> Claim | None:
        """The one claim that counts.

        Raises:
            ConflictError: there are several.
        """
        claims = [c for c in claims if c.overrides] or claims
        if len(claims) > 1:
            owners = " and ".join(f"{c.plugin.label} as {self.qualified(c)}" for c in claims)
            raise ConflictError(f"{kind} {name} is claimed by {owners}: ask for one of them by that name.")
        return claims[0] if claims else None

    def split(self, name: str) -> tuple[list[Plugin], str]:
        """The plugins a qualified name asks and the name it asks them for; no plugins if it is not qualified."""
        qualifier, colon, rest = name.partition(":")
        owners = [p for p in self.plugins if p.answers_to(qualifier)] if colon and rest else []
        return (owners, rest) if owners else ([], name)

    def claims(self, kind: Kind) -> list[Claim]:
        """Every claim of a kind, in the order of the plugins."""
        claims = [c for (of_kind, _), cs in self._claims.items() if of_kind == kind for c in cs]
        return sorted(claims, key=lambda claim: self._order[claim.plugin])

    def rivals(self, claim: Claim) -> list[Claim]:
        """The other claims to the same name, unless one of them all overrides."""
        claims = self._claims[claim.kind, normalise(claim.name)]
        return [] if any(c.overrides for c in claims) else [c for c in claims if c is not claim]

    def names(self, kind: Kind) -> list[str]:
        """Every name that can be asked for: as offered, or qualified where it is claimed twice."""
        names: dict[str, str] = {}
        for claim in self.claims(kind):
            name = self.qualified(claim) if self.rivals(claim) else claim.name
            if claim.overrides or normalise(name) not in names:
                names[normalise(name)] = name
        return list(names.values())

    def qualified(self, claim: Claim) -> str:
        """A name that means this claim and no other."""
        plugin = claim.plugin
        siblings = [p for p in self.plugins if p is not plugin and p.answers_to(plugin.owner)]
        return f"{plugin.source.name if siblings else plugin.owner}:{claim.name}"
