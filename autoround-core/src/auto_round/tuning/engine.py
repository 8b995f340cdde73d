# SPDX-License-Identifier: Apache-2.0
"""The block loop: load, wrap, tune, encode, hand out, go on with what the quantized block answers."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from auto_round.calibration.cache import CacheObserver, find_caches
from auto_round.calibration.inputs import run_after_blocks
from auto_round.calibration.observer import InputObserver
from auto_round.data_type.activation import ActivationQuantizer
from auto_round.errors import CalibrationError
from auto_round.plan import CachePlan, LayerSpec, Plan
from auto_round.tuning.chains import Chains, Runner
from auto_round.tuning.layer import TunableLinear
from auto_round.tuning.result import BlockResult, CacheResult, LayerResult
from auto_round.tuning.signround import Samples, tune_block

if TYPE_CHECKING:
    from auto_round.calibration import CalibrationTokens
    from auto_round.model.opened import OpenModel
    from auto_round.tuning.options import TuningOptions

__all__ = ["Progress", "needs_calibration", "quantize_blocks"]


class Progress(Protocol):
    """Told how far the work is."""

    def start(self, blocks: int, steps_per_block: int) -> None:
        """Work begins; a block counts as `steps_per_block` steps."""

    def step(self) -> None:
        """One step of the running block is done."""

    def block(self, result: BlockResult) -> None:
        """A block is done."""


def needs_calibration(plan: Plan, options: TuningOptions) -> bool:
    """Whether data must flow through the model at all."""
    if plan.cache is not None:
        return True
    return options.iters > 0 or any(_wants_importance(s, options) or s.static_activations for s in plan.quantized)


def _wants_importance(layer: LayerSpec, options: TuningOptions) -> bool:
    assert layer.data_type is not None
    return options.search and "imatrix" in layer.data_type.statistics(layer.scheme)


@torch.no_grad()
def quantize_blocks(
    model: OpenModel,
    plan: Plan,
    options: TuningOptions,
    tokens: CalibrationTokens | None,
    device: torch.device,
    progress: Progress,
) -> Iterator[BlockResult]:
    """Quantize a model block by block; its weights are replaced by what the codes decode to.

    Args:
        tokens: calibration data; may be None if `needs_calibration` says so.

    Yields:
        each block as soon as it is done, then the layers outside the blocks, if any are to be quantized.
    """
    outside = [layer for layer in plan.quantized if layer.block is None]
    model.untie(layer.name for layer in outside if layer.tied)
    progress.start(len(plan.blocks) + bool(outside), max(1, options.iters))
    chains = None
    if tokens is not None and needs_calibration(plan, options):
        chains = Chains.begin(model, options, tokens)
    for index, name in enumerate(plan.blocks):
        layers = [layer for layer in plan.quantized if layer.block == name]
        if chains is None:
            result = _round_layers(model, name, layers, options, device)
        else:
            result = _tune_layers(model, name, index, layers, options, chains, device, progress, plan.cache)
        progress.block(result)
        yield result
    if outside:
        observer = _observe_outside(model, outside, options, tokens, chains) if chains and tokens else None
        result = _round_layers(model, "", outside, options, device, observer)
        progress.block(result)
        yield result


def _round_layers(
    model: OpenModel,
    name: str,
    layers: Sequence[LayerSpec],
    options: TuningOptions,
    device: torch.device,
    observer: InputObserver | None = None,
) -> BlockResult:
    """Quantize layers by themselves, from their weights and what was observed of their inputs, if anything was."""
    start = time.monotonic()
    linears = {layer.name: model.model.get_submodule(layer.name) for layer in layers}
    tunables = {s.name: TunableLinear(linears[s.name], s, linears[s.name].weight.dtype, device) for s in layers}
    _prepare(tunables, observer, options)
    finished = [_finish(tunables[name], [linears[name]]) for name in tunables]
    return BlockResult(name, tuple(finished), seconds=time.monotonic() - start)


def _tune_layers(
    model: OpenModel,
    name: str,
    index: int,
    layers: Sequence[LayerSpec],
    options: TuningOptions,
    chains: Chains,
    device: torch.device,
    progress: Progress,
    cache: CachePlan | None,
) -> BlockResult:
    """Quantize the layers of one block so that the block answers as before."""
    start = time.monotonic()
    stored = model.model.get_submodule(name)
    dtype = _compute_dtype(stored, options, device)
    block = _working_copy(stored, dtype, device)
    runner = Runner(block, index, chains, device, dtype)
    inner = {layer.name: layer.name.removeprefix(name + ".") for layer in layers}
    linears = {layer.name: block.get_submodule(inner[layer.name]) for layer in layers}
    observer = _observer(linears, layers, options)
    kept = CacheObserver(find_caches(block) if cache is not None else {})
    with observer.watching(), kept.watching():
        targets = runner.over(chains, chains.reference, (observer, kept))

    originals = {s.name: stored.get_submodule(inner[s.name]) for s in layers}
    tunables = {s.name: TunableLinear(originals[s.name], s, dtype, device) for s in layers}
    _prepare(tunables, observer, options)
    outcome = None
    if options.iters and tunables:
        _put(block, {inner[n]: tunable for n, tunable in tunables.items()})
        inputs = chains.quantized if options.enable_quanted_input else chains.reference
        samples = Samples(inputs, targets, chains.mask, runner)
        generator = torch.Generator().manual_seed(options.seed + index)
        with torch.enable_grad():
            outcome = tune_block(
                list(tunables.values()), samples, options, chains.batch_size, generator, device, progress.step
            )
        _put(block, {inner[n]: linear for n, linear in linears.items()})
    finished = []
    for layer_name, tunable in tunables.items():
        places = [linears[layer_name]] if block is stored else [linears[layer_name], originals[layer_name]]
        finished.append(_finish(tunable, places))
    # The quantized chain feeds nothing unless a later block is tuned on it.
    if options.iters and options.enable_quanted_input and index + 1 < len(model.structure.blocks):
        chains.quantized = runner.over(chains, chains.quantized)
    chains.reference = targets
    caches = () if cache is None else _caches(cache, name, kept)
    result = BlockResult(
        name, tuple(finished), caches=caches, unseen=tuple(n for n in linears if n not in observer.seen)
    )
    if outcome is not None:
        before, after, step = outcome.loss_before, outcome.loss_after, outcome.kept_step
        result = dataclasses.replace(result, loss_before=before, loss_after=after, kept_step=step)
    return dataclasses.replace(result, seconds=time.monotonic() - start)


def _caches(cache: CachePlan, block: str, observer: CacheObserver) -> tuple[CacheResult, ...]:
    """Scales for what the attention layers of a block keep."""
    frozen = {key: cache.data_type.freeze(*ends, cache.scheme) for key, ends in observer.ranges.items()}
    names = dict.fromkeys(name for name, _ in frozen)
    return tuple(CacheResult(f"{block}.{name}", frozen[name, "k"], frozen[name, "v"]) for name in names)


def _observe_outside(
    model: OpenModel,
    layers: Sequence[LayerSpec],
    options: TuningOptions,
    tokens: CalibrationTokens,
    chains: Chains,
) -> InputObserver:
    """Watch the layers behind the blocks, fed with what the original blocks answered."""
    modules = {layer.name: model.model.get_submodule(layer.name) for layer in layers}
    observer = _observer(modules, layers, options)
    with observer.watching():
        for part in chains.batches():
            observer.mask = None if chains.mask is None else chains.mask[part]
            hidden, as_tuple = chains.reference[part], chains.recorded.as_tuple
            run_after_blocks(model.model, model.structure.block_list, tokens.input_ids[part], hidden, as_tuple=as_tuple)
    return observer


def _observer(modules: Mapping[str, nn.Module], layers: Sequence[LayerSpec], options: TuningOptions) -> InputObserver:
    importance = {s.name for s in layers if _wants_importance(s, options)}
    return InputObserver(modules, importance, {s.name for s in layers if s.static_activations})


def _prepare(tunables: Mapping[str, TunableLinear], observer: InputObserver | None, options: TuningOptions) -> None:
    """Everything a layer is told before it is tuned or rounded."""
    for name, tunable in tunables.items():
        layer = tunable.layer
        if layer.static_activations:
            low, high = _range_of(name, observer)
            tunable.freeze_activations(low, high)
        # Layers a runtime fuses decide together; the first one of a set asks for all of them.
        mates = [n for n in layer.shares if n in tunables and _alike(tunables[n].layer, layer)] or [name]
        if mates[0] == name:
            tunable.share_with([tunables[n] for n in mates])
    if options.search:
        for name, tunable in tunables.items():
            tunable.search(observer.sums.get(name) if observer is not None else None)


def _alike(one: LayerSpec, other: LayerSpec) -> bool:
    return one.scheme == other.scheme and one.data_type is other.data_type


def _range_of(name: str, observer: InputObserver | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The range of a layer's input; that of its likes for an expert that no token was sent to."""
    if observer is not None:
        template = _without_numbers(name)
        seen = [name] if name in observer.lows else [n for n in observer.lows if _without_numbers(n) == template]
        if seen:
            low = torch.stack([observer.lows[n] for n in seen]).min()
            high = torch.stack([observer.highs[n] for n in seen]).max()
            if not bool(torch.isfinite(low) & torch.isfinite(high)):
                raise CalibrationError(
                    f"layer {name}, whose activations are static, got NaN or infinite inputs: the model cannot compute "
                    "the calibration data; try compute_dtype=torch.float32."
                )
            return low, high
    raise CalibrationError(
        f"no calibration token reached layer {name}, whose activations are static: pass more text, or other text."
    )


def _without_numbers(name: str) -> str:
    return ".".join("#" if part.isdigit() else part for part in name.split("."))


def _compute_dtype(block: nn.Module, options: TuningOptions, device: torch.device) -> torch.dtype:
    if options.compute_dtype is not None:
        return options.compute_dtype
    dtype = next(p.dtype for p in block.parameters() if p.is_floating_point())
    return torch.float32 if dtype == torch.float16 and device.type == "cpu" else dtype


def _working_copy(block: nn.Module, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The block itself where it can be worked on in place, otherwise a copy on the device in the dtype."""
    tensors = [*block.parameters(), *block.buffers()]
    if all(t.device == device and (not t.is_floating_point() or t.dtype == dtype) for t in tensors):
        return block
    return copy.deepcopy(block).to(device, dtype)


def _put(block: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    for name, module in modules.items():
        parent, _, attribute = name.rpartition(".")
        setattr(block.get_submodule(parent), attribute, module)


def _finish(tunable: TunableLinear, places: Sequence[Any]) -> LayerResult:
    """The layer's result; plain layers get the weight every runtime will see, and see their input as it will."""
    result = tunable.finish()
    tunable.check_weight()
    for linear in places:
        linear.weight.copy_(result.weight.T if result.layer.transposed else result.weight)
        if tunable.activation is not None:
            linear.register_forward_pre_hook(_seen_through(tunable.activation))
    return result


def _seen_through(activation: ActivationQuantizer) -> Any:
    def quantize_input(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (activation(args[0]), *args[1:])

    return quantize_input
