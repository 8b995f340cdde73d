# SPDX-License-Identifier: Apache-2.0
"""The commands that list what is installed. They import plugins, and nothing plugins name lazily."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from auto_round.cli.group import CommandEntry, LazyGroup
from auto_round.cli.tables import write_table

if TYPE_CHECKING:
    from auto_round.plugins import Listed, Registry
    from auto_round.schemes import QuantizationScheme

__all__ = ["dtypes", "formats", "plugins", "schemes"]

_as_json = click.option("--json", "as_json", is_flag=True, help="Write JSON; its keys do not change.")


@click.group(
    cls=LazyGroup,
    entries={"show": CommandEntry("auto_round.cli.spec_card:show", "Show one of them: grid, layout, where it loads.")},
    invoke_without_command=True,
)
@_as_json
@click.pass_context
def dtypes(context: click.Context, *, as_json: bool) -> None:
    """List the data types.

    JSON: {"dtypes": [{name, plugin, distribution, version, state, summary}], "warnings": [text]}.
    """
    if context.invoked_subcommand is not None:
        return
    _list("dtypes", lambda registry: [_listed(entry) for entry in registry.listing("data type")], as_json=as_json)


@click.command()
@_as_json
def schemes(*, as_json: bool) -> None:
    """List the named schemes.

    JSON: {"schemes": [{name, plugin, distribution, version, state, scheme}], "warnings": [text]}; "scheme" holds the
    fields of the scheme that say something.
    """

    def rows(registry: Registry) -> list[dict[str, Any]]:
        entries = registry.listing("scheme")
        return [{**_listed(e, "summary"), "scheme": e.thing.to_dict()} for e in entries]

    def shown(row: Mapping[str, Any]) -> dict[str, Any]:
        from auto_round.schemes import QuantizationScheme

        rest = {key: value for key, value in row.items() if key != "scheme"}
        return {**rest, **_scheme_columns(QuantizationScheme.from_dict(row["scheme"]))}

    _list("schemes", rows, as_json=as_json, shown=shown)


@click.command()
@_as_json
def formats(*, as_json: bool) -> None:
    """List the output formats.

    JSON: {"formats": [{name, plugin, distribution, version, state, summary}], "warnings": [text]}.
    """
    _list("formats", lambda registry: [_listed(entry) for entry in registry.listing("format")], as_json=as_json)


@click.command()
@_as_json
def plugins(*, as_json: bool) -> None:
    """List the plugins: what works, what does not, and why.

    JSON: {"plugins": [{name, distribution, version, state, reason, data_types, schemes, formats, packings, notes,
    traceback}], "warnings": [text]}. States: loaded, empty, conflict, blocked, refused (made for another version of
    core), broken.
    """

    def shown(row: Mapping[str, Any]) -> dict[str, Any]:
        offers = [
            f"{len(row[field])} {word}{'' if len(row[field]) == 1 else 's'}"
            for field, word in zip(
                ("data_types", "schemes", "formats", "packings"),
                ("data type", "scheme", "format", "packing"),
                strict=True,
            )
            if row[field]
        ]
        said = " ".join([row["reason"], *row["notes"]]).strip()
        kept = {key: row[key] for key in ("name", "distribution", "version", "state")}
        return {**kept, "offers": ", ".join(offers), "reason": said}

    _list("plugins", lambda registry: list(map(dataclasses.asdict, registry.report())), as_json=as_json, shown=shown)


def _listed(entry: Listed, *without: str) -> dict[str, Any]:
    names = ("name", "plugin", "distribution", "version", "state", "summary")
    return {name: getattr(entry, name) for name in names if name not in without}


def _scheme_columns(scheme: QuantizationScheme) -> dict[str, str]:
    full = scheme.resolved()
    columns = {"bits": str(scheme.bits), "group_size": _groups(scheme.group_size), "sym": "yes" if scheme.sym else "no"}
    if not full.quantizes_activations:
        return {**columns, "data_type": scheme.data_type, "activations": ""}
    kind = "dynamic" if full.act_dynamic else "static"
    activations = f"{full.act_data_type}, {full.act_bits} bits, groups {_groups(full.act_group_size)}, {kind}"
    return {**columns, "data_type": scheme.data_type, "activations": activations}


def _groups(size: Any) -> str:
    return "x".join(map(str, size)) if isinstance(size, tuple) else str(size)


def _list(
    key: str,
    rows: Callable[[Registry], Sequence[Mapping[str, Any]]],
    *,
    as_json: bool,
    shown: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
) -> None:
    from auto_round.plugins import default_registry
    from auto_round.plugins.directory import what_to_install

    registry = default_registry()
    listed = rows(registry)
    if as_json:
        click.echo(json.dumps({key: listed, "warnings": registry.warnings}, indent=2))
    elif listed:
        cells = [shown(row) for row in listed]
        write_table(list(cells[0]), [[str(value) for value in row.values()] for row in cells])
    if not registry.data_type_names():
        click.echo(what_to_install(), err=True)
        for line in registry.report():
            if line.state == "blocked":
                click.echo(f"{line.distribution or line.name} is installed, but {line.reason}", err=True)
