# SPDX-License-Identifier: Apache-2.0
"""`auto-round dtypes show`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from auto_round.spec_card import Example, SpecCard

__all__ = ["show"]

WIDTH = 100


@click.command()
@click.argument("name")
@click.option("--scheme", "scheme_name", metavar="NAME", help="Show it under this scheme, not the first that uses it.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON; its keys do not change.")
def show(*, name: str, scheme_name: str | None, as_json: bool) -> None:
    """Show a data type: its grid, how it is stored, where it loads, and a worked example.

    JSON: {described, provenance, schemes, learnt, scheme, bits_per_weight, on_disk, places, example}.
    """
    from auto_round.plugins import default_registry
    from auto_round.spec_card import spec_card

    card = spec_card(default_registry(), name, scheme_name)
    if as_json:
        plain = {field.name: getattr(card, field.name) for field in dataclasses.fields(card)}
        plain["scheme"] = None if card.scheme is None else card.scheme.to_dict()
        plain["provenance"] = dataclasses.asdict(card.provenance)
        plain["places"] = [dataclasses.asdict(place) for place in card.places]
        plain["example"] = None if card.example is None else dataclasses.asdict(card.example)
        click.echo(json.dumps(plain, indent=2))
        return
    for title, lines in _sections(card):
        click.echo(f"{title}:")
        for line in lines:
            click.echo(click.wrap_text(line, WIDTH, initial_indent="  ", subsequent_indent="    "))


def _sections(card: SpecCard) -> Iterator[tuple[str, Sequence[str]]]:
    told = {key: value for key, value in card.described.items() if key not in ("name", "summary")}
    yield str(card.described["name"]), [str(card.described["summary"])]
    for key, value in told.items():
        lines = [f"{k}: {v}" for k, v in value.items()] if isinstance(value, dict) else [str(value)]
        yield key.replace("_", " "), lines
    source = f"{card.provenance.distribution} {card.provenance.version}".strip() or "this program"
    yield "comes with", [f"{source} (plugin {card.provenance.plugin})"]
    yield "schemes", [", ".join(card.schemes) or "none has a name: give bits, group_size, sym and data_type"]
    yield "learnt", [", ".join(f"{name} ({bounds})" for name, bounds in card.learnt.items()) or "nothing"]
    if card.scheme is None:
        return
    shown = ", ".join(f"{key}={value}" for key, value in card.scheme.to_dict().items() if value is not None)
    yield "from here on with", [shown, f"{card.bits_per_weight:.4g} bits per weight in a 4096 x 4096 layer"]
    for name, tensors in card.on_disk.items():
        yield f"tensors in format {name}", [f"{tensor}: {layout}" for tensor, layout in tensors.items()]
    yield (
        "loads in",
        [
            f"{p.runtime} >= {p.minimum}, format {p.format}, on {', '.join(p.devices)}"
            + (f": {p.note}" if p.note else "")
            for p in card.places
        ]
        or ["no runtime is recorded"],
    )
    if card.example is not None:
        yield f"a weight of {card.example.shape[0]} x {card.example.shape[1]}, for example", list(_worked(card.example))


def _worked(example: Example) -> Iterator[str]:
    width = max(map(len, ("weight", "loaded", *example.stored)))
    yield f"{'weight':{width}}  {_numbers(example.before)}"
    for name, (dtype, shape, values) in example.stored.items():
        yield f"{name:{width}}  {_numbers(values)}  ({dtype} {list(shape)})"
    yield f"{'loaded':{width}}  {_numbers(example.after)}"


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:8.4g}" for value in values)
