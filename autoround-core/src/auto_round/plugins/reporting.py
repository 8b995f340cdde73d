# SPDX-License-Identifier: Apache-2.0
"""One plugin as a line of the report."""

from __future__ import annotations

from auto_round.plugins.catalogue import Catalogue
from auto_round.plugins.loading import HOOKS
from auto_round.plugins.records import Kind, Plugin, PluginReport, State

__all__ = ["report_on"]


def report_on(plugin: Plugin, catalogue: Catalogue) -> PluginReport:
    """What a plugin offers, or why it does not; a plugin that works can still be empty or in conflict."""
    kinds: tuple[Kind, ...] = ("data type", "scheme", "format", "packing")
    own = [claim for kind in kinds for claim in catalogue.claims(kind) if claim.plugin is plugin]
    state: State = plugin.state
    reason = plugin.reason
    if state == "loaded" and not own:
        state, reason = "empty", _why_empty(plugin)
    contested = {claim: catalogue.rivals(claim) for claim in own if catalogue.rivals(claim)}
    if state == "loaded" and contested:
        state = "conflict"
        reason = "; ".join(
            f"{claim.kind} {claim.name} is also claimed by {' and '.join(r.plugin.label for r in rivals)}, "
            f"ask for {catalogue.qualified(claim)}"
            for claim, rivals in contested.items()
        )
    names = {kind: tuple(claim.name for claim in own if claim.kind == kind) for kind in kinds}
    return PluginReport(
        name=plugin.source.name,
        distribution=plugin.source.distribution,
        version=plugin.source.version,
        state=state,
        reason=reason,
        data_types=names["data type"],
        schemes=names["scheme"],
        formats=names["format"],
        packings=names["packing"],
        notes=(*plugin.source.notes, *plugin.notes),
        traceback=plugin.traceback,
    )


def _why_empty(plugin: Plugin) -> str:
    unmarked = [hook for hook in HOOKS if callable(getattr(plugin.loaded, hook, None))]
    if unmarked:
        return f"its {' and '.join(unmarked)} offer nothing: is the decorator auto_round.hookspecs.hookimpl there?"
    return "it has no hooks and declares no data types: mark a function with hookimpl or register_dtype."
