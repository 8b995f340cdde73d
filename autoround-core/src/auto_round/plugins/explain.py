# SPDX-License-Identifier: Apache-2.0
"""Why nobody answers for a name, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence

from auto_round.errors import AutoRoundError, PluginError, UnknownNameError
from auto_round.names import did_you_mean, nearest, normalise
from auto_round.plugins.catalogue import Catalogue
from auto_round.plugins.directory import KnownDistribution, bringing, known_distributions, plain_names, what_to_install
from auto_round.plugins.records import UNAVAILABLE, Kind

__all__ = ["explain"]


def explain(catalogue: Catalogue, kind: Kind, name: str, candidates: Sequence[str] = ()) -> AutoRoundError:
    """The error for a name that nobody answers for.

    Args:
        catalogue: who could have answered.
        kind: what the name should stand for.
        name: as it was written.
        candidates: the forms it was tried in, if it was completed.
    """
    return (
        _asked_of_a_plugin(catalogue, kind, name)
        or _known_distribution(catalogue, kind, name, [name, *candidates])
        or _unknown(catalogue, kind, name)
    )


def _asked_of_a_plugin(catalogue: Catalogue, kind: Kind, name: str) -> AutoRoundError | None:
    owners, rest = catalogue.split(name)
    if not owners:
        return None
    for plugin in owners:
        if plugin.state in UNAVAILABLE:
            return PluginError(f"{kind} {rest} is asked of {plugin.label}, which is {plugin.state}: {plugin.reason}")
    own = [claim.name for claim in catalogue.claims(kind) if claim.plugin in owners]
    if not own and bringing(kind, [name]):
        return None  # the qualifier is the first word of a name that another distribution brings
    close = did_you_mean(rest, own) or did_you_mean(name, own) or "."
    return UnknownNameError(f"{owners[0].label} offers no {kind} {rest!r}{close}")


def _known_distribution(catalogue: Catalogue, kind: Kind, name: str, tried: Sequence[str]) -> AutoRoundError | None:
    qualifier, _, rest = name.partition(":")
    asked = [d for d in known_distributions() if rest and normalise(d.name) == normalise(qualifier)]
    known = asked or bringing(kind, tried)
    if not known:
        return None
    shown = rest if asked else name
    missing: list[KnownDistribution] = []
    for distribution in known:
        plugins = [p for p in catalogue.plugins if normalise(p.source.distribution) == normalise(distribution.name)]
        for plugin in plugins:
            if plugin.state in UNAVAILABLE:
                who = f"{distribution.name} {plugin.source.version}"
                return PluginError(
                    f"{kind} {shown} comes with {who}, which is installed but {plugin.state}: {plugin.reason}"
                )
        if not plugins:
            missing.append(distribution)
    if not missing:
        names = " and ".join(d.name for d in known)
        return UnknownNameError(
            f"{kind} {shown} comes with {names}, but what is installed of it does not offer it: "
            f"pip install --upgrade {known[0].name}"
        )
    names = " or ".join(d.name for d in missing)
    return UnknownNameError(f"{kind} {shown} comes with {names}: pip install {missing[0].name}")


def _unknown(catalogue: Catalogue, kind: Kind, name: str) -> AutoRoundError:
    message = f"no installed plugin offers the {kind} {name!r}"
    close = did_you_mean(name, catalogue.names(kind))
    elsewhere = [] if close else nearest(name, plain_names(kind), count=1)
    if elsewhere:
        close = f"; did you mean {elsewhere[0]} (pip install {bringing(kind, elsewhere)[0].name})?"
    message += close or "."
    unavailable = [plugin for plugin in catalogue.plugins if plugin.state in UNAVAILABLE]
    for plugin in unavailable:
        message += f" {plugin.label} could not be asked, it is {plugin.state}: {plugin.reason}"
    if not unavailable and not catalogue.names("data type"):
        message += f" Also, {what_to_install()}"
    return UnknownNameError(message)
