# SPDX-License-Identifier: Apache-2.0
"""Where a plan's output will load, told before the work: families say it as data, this only compares."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from auto_round.names import and_more, experts_above

if TYPE_CHECKING:
    from auto_round.data_type import Runtime
    from auto_round.export import OutputFormat
    from auto_round.plan import LayerSpec

__all__ = ["TOGETHER", "computed_with", "misfit", "obstacle", "runtime_notes"]

TOGETHER = (
    frozenset({"q_proj", "k_proj", "v_proj"}),
    frozenset({"wq", "wk", "wv"}),
    frozenset({"gate_proj", "up_proj"}),
    frozenset({"w1", "w2", "w3"}),
    frozenset({"fc1", "fc3"}),
    frozenset({"c_fc_0", "c_fc_1"}),
    frozenset({"q_a_proj", "kv_a_proj_with_mqa"}),
    frozenset({"in_proj_qkv", "in_proj_z"}),
    frozenset({"in_proj_b", "in_proj_a"}),
)
"""What layers are called that runtimes compute as one, where they share an input and the module they are in.

A gate, or a multilayer perceptron beside attention, shares an input too, and is computed by itself.
"""

UNQUANTIZED = (frozenset({"in_proj", "x_proj", "dt_proj", "out_proj"}),)
"""What layers of one module are called that runtimes which fuse have at full precision alone: a mixer of Mamba 1."""


def runtime_notes(every: Sequence[LayerSpec], formats: Sequence[OutputFormat]) -> Iterator[str]:
    """One sentence for each runtime that cannot load what a format would write of layers, or needs something for it.

    Args:
        every: the layers of the model, those that are left alone among them.
    """
    layers = [layer for layer in every if layer.quantized]
    mixers, mixed = _unquantized(every), _mixed_experts(every)
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
                for found in _obstacles(layer, name, output_format):
                    obstacles.setdefault(found, []).append(layer.name)
            if runtime.fuses:
                if mixers:
                    obstacles["it has such mixers at full precision alone"] = mixers
                if mixed:
                    obstacles["it computes all experts of a block together, in one scheme"] = mixed
                for first, other in _torn_apart(layers):
                    obstacles.setdefault(f"it computes {other} and its like together, in one scheme", []).append(first)
            for found, names in obstacles.items():
                yield f"{name} will not load {and_more(names)} in format {output_format.name}: {found}."
            needs: dict[str, list[str]] = {}
            for layer in layers:
                for need in _needs(layer, name, output_format.name):
                    needs.setdefault(need, []).append(layer.name)
            for need, names in needs.items():
                yield f"{name} loads {and_more(names)} in format {output_format.name} with {need}."


def _obstacles(layer: LayerSpec, runtime_name: str, output_format: OutputFormat) -> Iterator[str]:
    """Why no record of a runtime takes a layer; nothing if one does."""
    assert layer.data_type is not None
    records = _records(layer, runtime_name, output_format.name)
    found = layer.apart or output_format.experts_found
    if layer.fused and not found and not any(record.fuses for record in records):
        yield "it knows the experts of this model in one tensor"
    elif not records:
        yield f"it does not know {layer.data_type.name}"
    elif all(obstacle(layer, record) for record in records):
        yield _of_the_nearest(layer, records)


def _of_the_nearest(layer: LayerSpec, records: Sequence[Runtime]) -> str:
    """What stands against the record that comes closest, or against several that come equally close."""
    least = min((_beyond(layer, record) for record in records), key=len)
    near = [record for record in records if _beyond(layer, record) == least]
    if least:
        return _beyond_told(layer, least[0], near)
    return str(obstacle(layer, near[0]))


def _needs(layer: LayerSpec, runtime_name: str, format_name: str) -> Iterator[str]:
    """What a runtime needs for a layer; nothing where a record that takes it needs nothing."""
    taking = [r.needs for r in _records(layer, runtime_name, format_name) if obstacle(layer, r) is None]
    if all(taking):
        yield from taking[:1]


def _records(layer: LayerSpec, runtime_name: str, format_name: str) -> list[Runtime]:
    assert layer.data_type is not None
    formats = (format_name, format_name.partition(":")[0])
    return [r for r in layer.data_type.runtimes if r.name == runtime_name and r.format in formats]


def misfit(layer: LayerSpec, output_format: OutputFormat) -> str | None:
    """Which runtime of a format would take a layer if it had another shape; None if all take it, or none ever would."""
    assert layer.data_type is not None
    for name in dict.fromkeys(record.name for record in layer.data_type.runtimes):
        near = [r for r in _records(layer, name, output_format.name) if not _beyond(layer, r)]
        if near and all(_uneven(layer, record) for record in near):
            return f"{name} in format {output_format.name} takes multiples of {near[0].multiple}, not {layer.shape}"
    return None


def computed_with(layer: LayerSpec) -> frozenset[str]:
    """Names of the layers that runtimes compute as one with a layer, itself not among them."""
    module, _, last = layer.name.rpartition(".")
    names = {f"{module}.{other}" for kin in TOGETHER if last in kin for other in kin if other != last}
    return frozenset(names.intersection(layer.shares))


def obstacle(layer: LayerSpec, record: Runtime) -> str | None:
    """Why a record does not take a layer, None if it does."""
    beyond = _beyond(layer, record)
    if beyond:
        return _beyond_told(layer, beyond[0], [record])
    if layer.expert and not record.experts:
        return "it does not read routed experts that are stored so"
    if _uneven(layer, record):
        return f"shape {layer.shape}, and it takes multiples of {record.multiple}"
    return None


def _uneven(layer: LayerSpec, record: Runtime) -> bool:
    return any(side % record.multiple for side in layer.shape)


def _beyond(layer: LayerSpec, record: Runtime) -> list[str]:
    """Fields of a layer's scheme whose values a record does not take."""
    return [name for name, allowed in record.limits.items() if getattr(layer.scheme, name) not in allowed]


def _beyond_told(layer: LayerSpec, name: str, records: Sequence[Runtime]) -> str:
    allowed = dict.fromkeys(value for record in records for value in record.limits[name] if value is not None)
    told = f"{name}={getattr(layer.scheme, name)}, and it takes {', '.join(map(str, allowed))}"
    return f"{told} ({records[0].note})" if records[0].note else told


def _unquantized(layers: Sequence[LayerSpec]) -> list[str]:
    """Names of the quantized layers that are among `UNQUANTIZED`, in a module that has all layers of such a kind."""
    inside: dict[str, set[str]] = {}
    for layer in layers:
        module, _, last = layer.name.rpartition(".")
        inside.setdefault(module, set()).add(last)
    whole = {f"{module}.{last}" for module, has in inside.items() for kin in UNQUANTIZED if kin <= has for last in kin}
    return [layer.name for layer in layers if layer.quantized and layer.name in whole]


def _mixed_experts(layers: Iterable[LayerSpec]) -> list[str]:
    """Names of the quantized experts that lie in a module with others in another scheme, or left alone."""
    together: dict[str, list[LayerSpec]] = {}
    for layer in layers:
        if layer.expert:
            together.setdefault(experts_above(layer.name), []).append(layer)
    mixed = (experts for experts in together.values() if len({(x.quantized, x.scheme) for x in experts}) > 1)
    return [layer.name for experts in mixed for layer in experts if layer.quantized]


def _torn_apart(layers: Sequence[LayerSpec]) -> Iterator[tuple[str, str]]:
    """Layers that are computed as one and have different schemes."""
    by_name = {layer.name: layer for layer in layers}
    for layer in layers:
        for mate in sorted(computed_with(layer)):
            if mate not in by_name or by_name[mate].scheme != layer.scheme:
                yield layer.name, mate
                break
