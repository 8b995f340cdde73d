# SPDX-License-Identifier: Apache-2.0
"""Where a plan's output will load, told before the work: families say it as data, this only compares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from auto_round.data_type import Runtime
    from auto_round.export import OutputFormat
    from auto_round.plan import LayerSpec

__all__ = ["obstacle", "runtime_notes"]


def runtime_notes(layers: Sequence[LayerSpec], formats: Sequence[OutputFormat]) -> Iterator[str]:
    """One sentence for each runtime that cannot load what a format would write of these layers, or needs something.

    Args:
        layers: the layers that are quantized.
    """
    for output_format in formats:
        container = output_format.name.partition(":")[0]
        known: dict[str, Runtime] = {}
        for layer in layers:
            assert layer.data_type is not None
            for runtime in layer.data_type.runtimes:
                if runtime.format in (output_format.name, container):
                    known.setdefault(runtime.name, runtime)
        for name, runtime in known.items():
            obstacles: dict[str, list[str]] = {}
            for layer in layers:
                for found in _obstacles(layer, name, output_format.name):
                    obstacles.setdefault(found, []).append(layer.name)
            if runtime.fuses:
                for first, other in _torn_apart(layers):
                    obstacles.setdefault(f"it computes {other} and its like together, in one scheme", []).append(first)
            for found, names in obstacles.items():
                yield f"{name} will not load {_and_more(names)} in format {output_format.name}: {found}."
            needs: dict[str, list[str]] = {}
            for layer in layers:
                for need in _needs(layer, name, output_format.name):
                    needs.setdefault(need, []).append(layer.name)
            for need, names in needs.items():
                yield f"{name} loads {_and_more(names)} in format {output_format.name} with {need}."


def _obstacles(layer: LayerSpec, runtime_name: str, format_name: str) -> Iterator[str]:
    """Why no record of a runtime takes a layer; nothing if one does."""
    assert layer.data_type is not None
    records = _records(layer, runtime_name, format_name)
    if not records:
        yield f"it does not know {layer.data_type.name}"
        return
    reasons = [obstacle(layer, record) for record in records]
    if all(reasons):
        yield str(reasons[0])


def _needs(layer: LayerSpec, runtime_name: str, format_name: str) -> Iterator[str]:
    """What a runtime needs for a layer; nothing where a record that takes it needs nothing."""
    taking = [r.needs for r in _records(layer, runtime_name, format_name) if obstacle(layer, r) is None]
    if all(taking):
        yield from taking[:1]


def _records(layer: LayerSpec, runtime_name: str, format_name: str) -> list[Runtime]:
    assert layer.data_type is not None
    formats = (format_name, format_name.partition(":")[0])
    return [r for r in layer.data_type.runtimes if r.name == runtime_name and r.format in formats]


def _and_more(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def obstacle(layer: LayerSpec, record: Runtime) -> str | None:
    """Why a record does not take a layer, None if it does."""
    for field_name, allowed in record.limits.items():
        value = getattr(layer.scheme, field_name)
        if value not in allowed:
            told = f"{field_name}={value}, and it takes {', '.join(map(str, allowed))}"
            return f"{told} ({record.note})" if record.note else told
    if layer.expert and not record.experts:
        return "it does not read routed experts that are stored so"
    if any(side % record.multiple for side in layer.shape):
        return f"shape {layer.shape}, and it takes multiples of {record.multiple}"
    return None


def _torn_apart(layers: Sequence[LayerSpec]) -> Iterator[tuple[str, str]]:
    """Layers that share an input and have different schemes."""
    by_name = {layer.name: layer for layer in layers}
    for layer in layers:
        for mate in layer.shares:
            if mate != layer.name and (mate not in by_name or by_name[mate].scheme != layer.scheme):
                yield layer.name, mate
                break
