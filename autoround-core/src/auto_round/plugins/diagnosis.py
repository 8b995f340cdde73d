# SPDX-License-Identifier: Apache-2.0
"""What is wrong with an installation, and the sentence that mends it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import importlib_metadata

from auto_round.errors import AutoRoundError
from auto_round.names import normalise
from auto_round.plugins.directory import known_distributions
from auto_round.plugins.other_distribution import other_distribution
from auto_round.plugins.records import PluginReport, State
from auto_round.plugins.selection import VARIABLE

if TYPE_CHECKING:
    from auto_round.plugins.registry import Registry

__all__ = ["Finding", "diagnose"]

OURS = "autoround-core"

Verdict = Literal["ok", "hint", "problem"]
"""hint: nothing is broken, but somebody may miss it; problem: something that is installed does not work."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: a distribution, or a plugin.
        verdict: how it is.
        told: what was found, one sentence.
        remedy: what to do about it, "" if nothing.
    """

    subject: str
    verdict: Verdict
    told: str
    remedy: str = ""


def diagnose(registry: Registry) -> Iterator[Finding]:
    """Look at everything that is installed; imports all of it."""
    rival = other_distribution()
    if rival:
        yield Finding(OURS, "problem", rival)
    yield from _requirements(OURS)
    report = registry.report()
    for line in report:
        yield from _plugin(line)
        if line.distribution and normalise(line.distribution) != normalise(OURS):
            yield from _requirements(line.distribution)
    yield from _records(registry)
    for warning in registry.warnings:
        yield Finding("plugins", "hint", warning)
    present = {normalise(line.distribution) for line in report}
    for known in known_distributions():
        if normalise(known.name) not in present:
            yield Finding(
                known.name, "hint", f"is not installed; it brings {known.summary}", f"pip install {known.name}"
            )


def _plugin(line: PluginReport) -> Iterator[Finding]:
    subject = f"plugin {line.name}"
    who = f"{line.distribution} {line.version}".strip()
    told = " ".join(filter(None, (f"{who} is {line.state}." if who else f"is {line.state}.", line.reason)))
    remedies: dict[State, str] = {
        "broken": f"pip install --upgrade {line.distribution}; if that does not help, tell its author, with what "
        f"`auto-round plugins --json` shows as its traceback, and leave it out with {VARIABLE}=-{line.name}",
        "refused": "",  # the reason says which of the two to upgrade
        "conflict": f"write names as DISTRIBUTION:NAME, or leave one of the two out with {VARIABLE}=-NAME",
        "blocked": f"take it off the list in {VARIABLE}, if it is wanted",
        "empty": f"tell its author, or pip uninstall {line.distribution}" if line.distribution else "",
    }
    verdicts: dict[State, Verdict] = {"loaded": "ok", "blocked": "hint", "empty": "hint"}
    yield Finding(subject, verdicts.get(line.state, "problem"), told, remedies.get(line.state, ""))
    for note in line.notes:
        yield Finding(subject, "hint", note)


def _requirements(distribution: str) -> Iterator[Finding]:
    """What a distribution says it needs and does not have."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        found = importlib_metadata.distribution(distribution)
    except importlib_metadata.PackageNotFoundError:
        return
    for text in found.requires or ():
        try:
            needed = Requirement(text)
        except InvalidRequirement:
            yield Finding(distribution, "problem", f"states a requirement that cannot be read: {text!r}.")
            continue
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        plain = f"{needed.name}{needed.specifier}"
        try:
            version = importlib_metadata.version(needed.name)
        except importlib_metadata.PackageNotFoundError:
            yield Finding(distribution, "problem", f"needs {plain}, which is missing.", f'pip install "{plain}"')
            continue
        if not needed.specifier.contains(version, prereleases=True):
            yield Finding(distribution, "problem", f"needs {plain}; {version} is installed.", f'pip install "{plain}"')


def _records(registry: Registry) -> Iterator[Finding]:
    """What plugins only named, asked for: a target that does not exist shows itself here and nowhere earlier."""
    asked: tuple[tuple[str, list[str], Callable[[str], object]], ...] = (
        ("data type", registry.data_type_names(), registry.data_type),
        ("format", registry.format_names(), registry.output_format),
        ("packing", [entry.name for entry in registry.listing("packing")], registry.packing),
    )
    for kind, names, ask in asked:
        for name in names:
            try:
                ask(name)
            except AutoRoundError as error:
                yield Finding(f"{kind} {name}", "problem", str(error), "tell the author of the plugin it comes with")
