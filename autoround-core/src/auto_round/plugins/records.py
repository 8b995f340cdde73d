# SPDX-License-Identifier: Apache-2.0
"""What the registry keeps about a plugin and what it says about one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from auto_round.names import normalise

__all__ = ["UNAVAILABLE", "Claim", "Kind", "Listed", "Plugin", "PluginReport", "Provenance", "Source", "State"]

Kind = Literal["data type", "scheme", "format", "packing"]
"""What a name can stand for. Names of different kinds never meet."""

State = Literal["loaded", "empty", "conflict", "blocked", "refused", "broken"]
"""loaded: it works; empty: it offers nothing; conflict: another plugin claims a name of its; blocked: by the allow or
block list; refused: made for another version of core; broken: it failed."""

UNAVAILABLE: frozenset[State] = frozenset({"blocked", "refused", "broken"})


@dataclass(frozen=True)
class Provenance:
    """Who makes a name mean something: recorded in checkpoints. Distribution and version are "" where there is none."""

    plugin: str
    distribution: str
    version: str


@dataclass(frozen=True)
class PluginReport:
    """One line of `auto-round plugins`.

    Attributes:
        reason: one sentence that explains the state, "" for `loaded`.
        notes: what is worth knowing and breaks nothing.
        traceback: where a broken plugin failed, "" otherwise.
    """

    name: str
    distribution: str
    version: str
    state: State
    reason: str = ""
    data_types: tuple[str, ...] = ()
    schemes: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    packings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    traceback: str = ""


@dataclass(frozen=True)
class Listed:
    """One name of one kind, as listings show it.

    Attributes:
        state: `ready`, or `conflict` where another plugin claims the name too.
        thing: the object or the `Lazy*` record that stands for it.
    """

    name: str
    plugin: str
    distribution: str
    version: str
    state: Literal["ready", "conflict"]
    summary: str
    thing: Any = field(compare=False, repr=False)


@dataclass(frozen=True)
class Source:
    """Where a plugin comes from, known before any of its code runs.

    Attributes:
        name: of the entry point, or as given to `Registry.register`.
        module: name of its module; functions declared there or below are its own. "" for an object that is no module.
        load: returns the plugin object.
    """

    name: str
    distribution: str
    version: str
    module: str
    load: Callable[[], object] = field(compare=False, repr=False)
    notes: tuple[str, ...] = ()


@dataclass(eq=False)
class Plugin:
    """A plugin and what became of it."""

    source: Source
    state: State = "loaded"
    reason: str = ""
    traceback: str = ""
    notes: tuple[str, ...] = ()
    claims: list[Claim] = field(default_factory=list)
    loaded: object = None

    @property
    def label(self) -> str:
        """How messages name it."""
        version = f"{self.source.distribution} {self.source.version}".strip()
        return f"plugin {self.source.name}" + (f" ({version})" if version else "")

    @property
    def owner(self) -> str:
        """How messages name who is behind it, and the left part of qualified names."""
        return self.source.distribution or self.source.name

    def answers_to(self, qualifier: str) -> bool:
        """Whether `qualifier:NAME` is a question to this plugin."""
        return normalise(qualifier) in {normalise(self.source.name), normalise(self.source.distribution or "\0")}


@dataclass(eq=False)
class Claim:
    """One name that one plugin says it answers for.

    Attributes:
        thing: the object, or a `Lazy*` record of it.
        container: for a packing, the format it belongs to.
        overrides: whether it wins over other claims to its name; only what a program sets itself does.
        made: the object, once it was asked for.
    """

    plugin: Plugin
    kind: Kind
    name: str
    thing: Any
    summary: str = ""
    container: str = ""
    overrides: bool = False
    made: Any = None
