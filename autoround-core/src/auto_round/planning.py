# SPDX-License-Identifier: Apache-2.0
"""Making the plan: what happens to each layer, decided before any long work starts."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from auto_round.errors import PlanError, SchemeError
from auto_round.names import and_more
from auto_round.plan import CachePlan, KeptWeight, LayerSpec, Plan
from auto_round.runtimes import runtime_notes
from auto_round.schemes import FULL_PRECISION_BITS, LayerPlace, QuantizationScheme
from auto_round.selectors import select, select_all
from auto_round.small_layers import Refusals, small_misfits

if TYPE_CHECKING:
    import torch

    from auto_round.data_type import DataType
    from auto_round.export import OutputFormat
    from auto_round.model.opened import OpenModel
    from auto_round.model.structure import LinearInfo
    from auto_round.plugins import Registry

__all__ = ["LayerConfig", "choose_scheme", "make_plan", "with_ignored"]

Change = str | QuantizationScheme | Mapping[str, Any]

LayerConfig = Mapping[str, Change]
"""Which layers to treat differently (see `selectors`) and how: a scheme by name, a scheme, or fields to change."""

STACKED = "many matrices in one tensor, kept in a way that is not known"
INTERLEAVED = "its readers know these experts in one tensor, gate and up row by row; take format auto_round or fake"


def choose_scheme(
    registry: Registry, scheme: str | QuantizationScheme | Mapping[str, Any] | None, overrides: Mapping[str, Any]
) -> tuple[str, QuantizationScheme]:
    """The scheme a user means by a name, some fields, or both; and what to call it.

    Raises:
        UnknownNameError: no plugin offers a scheme of that name.
        UnknownOptionError: an override that is no field of a scheme.
        SchemeError: a value that means nothing.
    """
    from auto_round.schemes import default_scheme_name

    if scheme is None and "data_type" in overrides:
        chosen, name = QuantizationScheme(), ""
    elif scheme is None or isinstance(scheme, str):
        name = scheme or default_scheme_name()
        chosen = registry.scheme(name)
    elif isinstance(scheme, QuantizationScheme):
        chosen, name = scheme, ""
    elif isinstance(scheme, Mapping):
        chosen, name = QuantizationScheme().replace(**scheme), ""
    else:
        raise SchemeError(f"scheme must be a name, a QuantizationScheme or its fields, not {type(scheme).__name__}.")
    changed = chosen.replace(**overrides)
    told = ", ".join(f"{key}={value}" for key, value in overrides.items())
    return " ".join(part for part in (name, f"({told})" if told else "") if part) or str(changed.data_type), changed


def with_ignored(layer_config: LayerConfig, ignored: str | Sequence[str]) -> LayerConfig:
    """A layer configuration that also leaves layers at full precision.

    Args:
        ignored: keys of a layer configuration, in one string with commas or one by one.

    Raises:
        PlanError: a key that the configuration has too.
    """
    keys = ignored.split(",") if isinstance(ignored, str) else ignored
    if not all(isinstance(key, str) for key in keys):
        raise PlanError([f"ignore_layers is names of layers, not {ignored!r}."])
    names = [key.strip() for key in keys if key.strip()]
    twice = [name for name in names if name in layer_config]
    if twice:
        raise PlanError([f"{twice[0]!r} is in layer_config and in ignore_layers; say once what to do with it."])
    return {**layer_config, **{name: {"bits": FULL_PRECISION_BITS} for name in names}}


def make_plan(
    model: OpenModel,
    scheme: QuantizationScheme,
    registry: Registry,
    *,
    scheme_name: str = "",
    layer_config: LayerConfig | None = None,
    quant_lm_head: bool = False,
    formats: Sequence[OutputFormat] = (),
    cache_data_type: str | None = None,
) -> Plan:
    """Decide for every linear layer what happens to it; the model need not be loaded.

    Args:
        quant_lm_head: quantize the output layer too, which is left alone unless `layer_config` names it.
        cache_data_type: in what the keys and values that attention keeps are to be stored.

    Raises:
        PlanError: everything that stands against it: keys that match nothing, schemes a format cannot hold.
        UnknownNameError: a data type or scheme that no plugin offers.
    """
    linears = model.structure.linears
    names = [info.name for info in linears]
    kept = tuple(_kept(model))
    _check_layer_config(layer_config or {})
    apart = {info.name: told for info in linears for told in [_told_apart(model, info)] if told}
    overrides = select_all(_without_kept(layer_config or {}, names, kept, registry), names, aside=apart)
    layers = [
        _plan_layer(model, info, scheme, overrides[info.name], registry, quant_lm_head, apart.get(info.name))
        for info in linears
    ]
    refusals = {
        (layer.name, output_format.name): output_format.refuses(layer)
        for layer in layers
        if layer.quantized
        for output_format in formats
    }
    small = small_misfits(layers, formats, refusals, {name for name, changes in overrides.items() if changes})
    layers = [_left_alone(layer, small[layer.name]) if layer.name in small else layer for layer in layers]
    refused: dict[str, list[str]] = {}
    layers = [_with_format(layer, formats, refusals, refused) for layer in layers]
    plan = Plan(
        model=model.name,
        architecture=model.architecture,
        scheme_name=scheme_name or scheme.data_type,
        scheme=scheme.resolved(),
        layers=tuple(layers),
        blocks=model.structure.blocks,
        model_bytes=model.model_bytes,
        kept=kept,
        unused=tuple(model.unused_matrices),
        config=getattr(model.model, "config", None),
        cache=None if cache_data_type is None else _plan_cache(cache_data_type, registry),
    )
    problems = [f"{and_more(names)}: {reason}" for reason, names in refused.items()]
    for output_format in formats:
        problems += output_format.refuses_plan(plan)
        refusal = None if plan.cache is None else output_format.refuses_cache(plan.cache)
        if refusal:
            problems.append(f"format {output_format.name} cannot hold scales of keys and values: {refusal}.")
    if problems:
        raise PlanError(problems)
    notes = [
        *runtime_notes(plan.layers, formats),
        *(n for output_format in formats for n in output_format.notes(plan)),
    ]
    return dataclasses.replace(
        plan,
        layers=_with_sizes(plan.layers, formats),
        notes=(*_told_stacked(plan), *_told_unused(plan, formats), *_told_small(small), *notes),
    )


def _check_layer_config(layer_config: LayerConfig) -> None:
    problems = [
        f"layer_config: {key!r} leads to {value!r}, which is no scheme, name of one or mapping of its fields."
        for key, value in layer_config.items()
        if not isinstance(value, str | QuantizationScheme | Mapping)
    ]
    problems += [f"layer_config: {key!r} is no name of layers." for key in layer_config if not isinstance(key, str)]
    if problems:
        raise PlanError(problems)


def _without_kept(
    layer_config: LayerConfig, linears: Sequence[str], kept: Sequence[KeptWeight], registry: Registry
) -> LayerConfig:
    """The entries without those that leave alone what stays in any case: routers, embeddings.

    Raises:
        PlanError: an entry that would change one.
    """
    stays = {one.name: one for one in kept}
    asked, problems, exact = set(), [], set(linears)
    for key, change in layer_config.items():
        try:
            names = [] if key in exact or select(key, linears)[1] else select(key, [*stays])[1]
        except re.error:
            continue  # who looks for the layers says so
        if names and not _changed(QuantizationScheme(), change, registry).quantizes_weights:
            asked.add(key)
        elif names:
            problems.append(f"layer_config: {key!r} is {names[0]}, which stays as it is: {stays[names[0]].reason}.")
    if problems:
        raise PlanError(problems)
    return {key: change for key, change in layer_config.items() if key not in asked}


def _changed(scheme: QuantizationScheme, change: Change, registry: Registry) -> QuantizationScheme:
    """A scheme after one entry of a layer configuration."""
    if isinstance(change, str):
        return registry.scheme(change)
    return change if isinstance(change, QuantizationScheme) else scheme.replace(**change)


def _plan_layer(
    model: OpenModel,
    info: LinearInfo,
    scheme: QuantizationScheme,
    overrides: Sequence[Change],
    registry: Registry,
    head: bool,
    apart: str | None,
) -> LayerSpec:
    scheme = scheme.for_layer(_place(model, info))
    for change in overrides:
        scheme = _changed(scheme, change, registry)
    dtype, fused = model.stored_dtype(info.name), model.file_names[info.name] is None
    spec = LayerSpec(
        info.name, info.shape, dtype, info.block, info.transposed, info.tied, scheme.resolved(),
        expert=model.is_expert(info.name), fused=fused, apart=fused and model.reads_experts_apart,
        file_name=_other_name(model, info.name),
    )  # fmt: skip
    if not scheme.quantizes_weights:
        return dataclasses.replace(spec, reason="left at full precision on request")
    if info.block is None and not overrides and not (head and info.head):
        where = "tied to the input embedding" if info.tied else "outside the blocks"
        return dataclasses.replace(spec, reason=f"{where}; name it in layer_config to quantize it")
    if apart and not overrides:
        return dataclasses.replace(spec, reason=f"{apart}; name it in layer_config to quantize it")
    if info.own_forward is not None:
        return dataclasses.replace(spec, reason=f"{info.own_forward} computes something else than a linear layer")
    data_type = registry.data_type_for(scheme)
    reason = data_type.supports(scheme, info.shape) if all(info.shape) else "it has no weights"
    if reason:
        return dataclasses.replace(spec, reason=reason)
    activation = None
    if scheme.quantizes_activations:
        activation = _plan_activation(spec, registry, grouped=scheme.act_group_size is not None)
    return dataclasses.replace(
        spec, data_type=data_type, activation=activation, shares=model.shared_inputs.get(info.name, (info.name,))
    )


def _told_apart(model: OpenModel, info: LinearInfo) -> str | None:
    """What makes a layer one of those that stay as they are unless they are named themselves, None if nothing does."""
    if info.shape[0] == 1:
        return "a gate of one output"
    chooser = model.watched.choosers.get(info.name)
    return None if chooser is None else f"a part of {chooser}, which chooses what is computed"


def _plan_activation(spec: LayerSpec, registry: Registry, *, grouped: bool) -> DataType:
    """The data type of a layer's inputs.

    Args:
        grouped: whether groups of inputs were asked for; else they are taken over from weights, and a data type that
            has its own way with inputs goes by that.

    Raises:
        PlanError: it cannot take them.
    """
    scheme = spec.scheme.for_activations()
    data_type = registry.data_type_for(scheme)
    if isinstance(scheme.group_size, tuple):
        reason: str | None = f"activations have groups along a row, not blocks of {scheme.group_size}"
    else:
        shape = (1, spec.shape[1])
        reason = data_type.supports(scheme, shape)
        if reason and not grouped:
            reason = data_type.supports(scheme.replace(group_size=-1), shape)
    if reason:
        raise PlanError([f"the activations of {spec.name} cannot be quantized so: {reason}."])
    return data_type


def _kept(model: OpenModel) -> Iterator[KeptWeight]:
    for name, shape in model.structure.embeddings:
        nbytes = shape[0] * shape[1] * model.stored_dtype(name).itemsize
        yield KeptWeight(name, shape, nbytes, "an embedding: rows are looked up, not multiplied")
    for name, shape in model.structure.matrices:
        nbytes = shape[0] * shape[1] * model.stored_dtype(name).itemsize
        kind = type(model.model.get_submodule(name)).__name__
        reason = f"{kind} is no linear layer, and does more than to multiply"
        yield KeptWeight(name, shape, nbytes, reason, linear=True, file_name=_other_name(model, name))
    for name, many in model.structure.stacks:
        parameter = model.model.get_parameter(name)
        dtype = model.headers[name].dtype if name in model.headers else parameter.dtype
        yield KeptWeight(name, many, parameter.numel() * dtype.itemsize, STACKED)


def _told_stacked(plan: Plan) -> list[str]:
    """A note on experts that stay as they are because nobody knows how they are kept: most of some models."""
    stacked = [kept for kept in plan.kept if kept.stacked]
    if not stacked:
        return []
    share = sum(kept.nbytes for kept in stacked) / plan.model_bytes
    names = and_more([kept.name for kept in stacked])
    return [f"{share:.0%} of the model stays at full precision: {names} hold many matrices in a way that is not known."]


def _told_unused(plan: Plan, formats: Sequence[OutputFormat]) -> list[str]:
    """A note on matrices that lie in the files beside the model, and stay: vision towers, heads of more tokens."""
    if not plan.unused or all(output_format.own_names for output_format in formats):
        return []
    told = f"the files have matrices that {plan.architecture} does not use, {and_more(plan.unused)}"
    return [f"{told}: they are written as they are."]


def _left_alone(layer: LayerSpec, reason: str) -> LayerSpec:
    told = f"a small layer, and {reason}; name it in layer_config to quantize it"
    return dataclasses.replace(layer, data_type=None, activation=None, shares=(), reason=told)


def _told_small(small: Mapping[str, str]) -> list[str]:
    """A note on small layers that stay as they are for the sake of where the model is to be loaded."""
    if not small:
        return []
    return [f"small layers stay at full precision, {and_more([*small])}: {next(iter(small.values()))}."]


def _other_name(model: OpenModel, layer: str) -> str | None:
    """What files call a layer, if that is not what the model calls it."""
    name = model.name_in_files(layer)
    return None if name == layer else name


def _plan_cache(data_type: str, registry: Registry) -> CachePlan:
    scheme = QuantizationScheme(
        16, act_bits=8, act_group_size=0, act_sym=True, act_data_type=data_type, act_dynamic=False
    )
    return CachePlan(registry.data_type_for(scheme.resolved().for_activations()), scheme.resolved())


def _place(model: OpenModel, info: LinearInfo) -> LayerPlace:
    blocks = model.structure.blocks
    config = getattr(model.model, "config", None)
    return LayerPlace(
        info.name,
        info.shape,
        None if info.block is None else blocks.index(info.block),
        len(blocks),
        config.to_dict() if config is not None else {},
    )


def _with_format(
    layer: LayerSpec, formats: Sequence[OutputFormat], refusals: Refusals, refused: dict[str, list[str]]
) -> LayerSpec:
    """Fix the dtype of the layer's scales to what the formats store, and collect what they refuse, by reason."""
    if not layer.quantized:
        return layer
    wanted: dict[torch.dtype, str] = {}
    for output_format in formats:
        held = not layer.interleaved or output_format.experts_found
        refusal = refusals[layer.name, output_format.name] if held else INTERLEAVED
        if refusal:
            refused.setdefault(f"format {output_format.name} cannot hold it: {refusal}", []).append(layer.name)
            continue
        dtype = output_format.scale_dtype(layer)
        if dtype is not None:
            wanted.setdefault(dtype, output_format.name)
    if len(wanted) > 1:
        told = " and ".join(f"{name} stores scales as {dtype}" for dtype, name in wanted.items())
        reason = f"{told}; one tuning cannot serve both, so run them one after the other."
        refused.setdefault(reason, []).append(layer.name)
    assert layer.data_type is not None
    return dataclasses.replace(layer, scale_dtype=next(iter(wanted), layer.data_type.scale_dtype))


def _with_sizes(layers: Sequence[LayerSpec], formats: Sequence[OutputFormat]) -> tuple[LayerSpec, ...]:
    """Note what weights take in each format, which is asked once for layers that are alike."""
    known: dict[Any, tuple[float, ...]] = {}

    def stored(layer: LayerSpec) -> tuple[float, ...]:
        assert layer.data_type is not None
        alike = (layer.data_type.name, layer.scheme, layer.shape, layer.dtype, layer.expert)
        if alike not in known:
            known[alike] = tuple(output_format.bits_per_weight(layer) for output_format in formats)
        return known[alike]

    return tuple(
        dataclasses.replace(layer, stored_bits=stored(layer)) if layer.quantized else layer for layer in layers
    )
