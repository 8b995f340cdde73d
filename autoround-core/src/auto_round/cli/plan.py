# SPDX-License-Identifier: Apache-2.0
"""`auto-round plan`."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import TYPE_CHECKING, Any

import click

from auto_round.cli.model_options import (
    activations,
    e2e_iters,
    low_memory,
    model_and_scheme,
    read_model,
    read_scheme,
    recipe,
)
from auto_round.sizes import readable_size

if TYPE_CHECKING:
    from auto_round.plan import LayerSpec, Plan
    from auto_round.run.memory import MemoryNeed

__all__ = ["plan"]


@click.command(short_help="Show what quantizing a model would do.")
@model_and_scheme
@click.option("--nsamples", type=int, default=128, show_default=True, help="Calibration samples.")
@click.option("--seqlen", type=int, help="Tokens per sample.  [default: 2048, or what the model can take]")
@recipe
@click.option("--iters", type=int, default=200, show_default=True, help="Steps per block; 0 only rounds.")
@e2e_iters
@click.option("--batch-size", type=int, default=8, show_default=True, help="Samples per forward pass.")
@click.option("--disable-opt-rtn", is_flag=True, help="Do not search for better scales first.")
@activations
@low_memory
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def plan(**options: Any) -> None:
    """Show, layer by layer, what would be done to MODEL, from its config and the headers of its files alone."""
    from auto_round.autoround import AutoRound

    model, scheme = read_model(options), read_scheme(options)
    output_format, as_json = options.pop("format_"), options.pop("as_json")
    job = AutoRound(model, **scheme, **options)
    made, need = job.plan(output_format), job.memory_needed(output_format)
    if as_json:
        click.echo(json.dumps({**_plain(made), "memory": dataclasses.asdict(need)}, indent=2))
    else:
        _print(made, need)
        short = job.memory_short(output_format)
        if short is not None:
            click.echo(f"note: {short}")


def _plain(made: Plan) -> dict[str, Any]:
    return {
        "model": made.model,
        "architecture": made.architecture,
        "scheme": made.scheme_name,
        "blocks": list(made.blocks),
        "model_bytes": made.model_bytes,
        "output_bytes": made.output_bytes,
        "bits_per_weight": made.bits_per_weight,
        "kept": [{"name": k.name, "shape": list(k.shape), "bytes": k.nbytes, "reason": k.reason} for k in made.kept],
        "unused": list(made.unused),
        "notes": list(made.notes),
        "layers": [_plain_layer(layer) for layer in made.layers],
    }


def _plain_layer(layer: LayerSpec) -> dict[str, Any]:
    return {
        "name": layer.name,
        "shape": list(layer.shape),
        "data_type": layer.data_type.name if layer.data_type else None,
        "scheme": layer.scheme.to_dict() if layer.quantized else None,
        "bits_per_weight": layer.bits_per_weight,
        "bytes": layer.nbytes,
        "reason": layer.reason,
    }


def _print(made: Plan, need: MemoryNeed) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "layer", "shape", "data type", "bits", "group", "bytes", "bits/weight", "why not", box=None, pad_edge=False
    )
    for layer in made.layers:
        scheme = layer.scheme
        table.add_row(
            layer.name,
            "x".join(map(str, layer.shape)),
            layer.data_type.name if layer.data_type else "-",
            str(scheme.bits) if layer.quantized else "-",
            str(scheme.group_size) if layer.quantized else "-",
            f"{layer.nbytes:,}",
            f"{layer.bits_per_weight:.3f}",
            layer.reason,
        )
    for kept in made.kept:
        shape = "x".join(map(str, kept.shape))
        bits = kept.nbytes * 8 / math.prod(kept.shape)
        table.add_row(kept.name, shape, "-", "-", "-", f"{kept.nbytes:,}", f"{bits:.3f}", kept.reason)
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table, highlight=False)
    for note in made.notes:
        console.print(f"note: {note}", highlight=False)
    console.print(
        f"{made.architecture}, {made.scheme_name}: {len(made.quantized)} of {len(made.layers)} linear layers in "
        f"{len(made.blocks)} blocks, {made.bits_per_weight:.3f} bits per quantized weight, "
        f"{made.model_bytes:,} -> {made.output_bytes:,} bytes",
        highlight=False,
    )
    parts = {
        "process": need.process,
        "outside blocks": need.outside,
        "block": need.block,
        "activations": need.activations,
    }
    told = ", ".join(f"{name} {readable_size(size)}" for name, size in parts.items())
    console.print(f"peak memory on a CPU: about {readable_size(need.total)} ({told})", highlight=False)
