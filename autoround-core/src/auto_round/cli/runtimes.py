# SPDX-License-Identifier: Apache-2.0
"""`auto-round runtimes`."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import click

from auto_round.cli.tables import write_table

if TYPE_CHECKING:
    from auto_round.runtime_table import Place

__all__ = ["runtimes"]

COLUMNS = ("format", "runtime", "from version", "devices", "schemes", "note")


@click.command()
@click.argument("names", metavar="[SCHEME]...", nargs=-1)
@click.option("--distribution", help="Only schemes that this distribution brings.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON; its keys do not change.")
@click.option("--markdown", is_flag=True, help="Write a table for a document.")
def runtimes(*, names: tuple[str, ...], distribution: str | None, as_json: bool, markdown: bool) -> None:
    """List which runtime loads which schemes, in which format and from which version on, as data types tell it.

    JSON: {"runtimes": [{format, runtime, minimum, devices, note, schemes}]}.
    """
    from auto_round.names import normalise
    from auto_round.plugins import default_registry
    from auto_round.runtime_table import table

    registry = default_registry()
    if not names:
        of = None if distribution is None else normalise(distribution)
        listed = registry.listing("scheme")
        names = tuple(e.name for e in listed if e.state == "ready" and (of is None or normalise(e.distribution) == of))
    rows = table(registry, names)
    if as_json:
        plain = [{**dataclasses.asdict(place), "schemes": list(schemes)} for place, schemes in rows]
        click.echo(json.dumps({"runtimes": plain}, indent=2))
        return
    cells = [_cells(place, schemes) for place, schemes in rows]
    if markdown:
        for row in (COLUMNS, ("---",) * len(COLUMNS), *cells):
            click.echo(f"| {' | '.join(row)} |")
    else:
        write_table(COLUMNS, cells)


def _cells(place: Place, schemes: tuple[str, ...]) -> tuple[str, ...]:
    return (place.format, place.runtime, place.minimum, ", ".join(place.devices), ", ".join(schemes), place.note)
