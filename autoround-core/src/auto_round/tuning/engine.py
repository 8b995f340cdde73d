# SPDX-License-Identifier: Apache-2.0
"""The block loop: load, wrap, tune, encode, hand out, go on with what the quantized block answers."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from auto_round.calibration.importance import ImportanceObserver
from auto_round.calibration.inputs import BlockCall, BlockInputs, capture_block_inputs
from auto_round.plan import LayerSpec, Plan
from auto_round.tuning.layer import TunableLinear
from auto_round.tuning.result import BlockResult, LayerResult
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
    return options.iters > 0 or any(_statistics(layer, options) for layer in plan.quantized)


def _statistics(layer: LayerSpec, options: TuningOptions) -> frozenset[str]:
    assert layer.data_type is not None
    return layer.data_type.statistics(layer.scheme) if options.search else frozenset()


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
    progress.start(len(plan.blocks) + bool(outside), max(1, options.iters))
    chains = None
    if tokens is not None and needs_calibration(plan, options):
        chains = _Chains.begin(model, options, tokens)
    for index, name in enumerate(plan.blocks):
        layers = [layer for layer in plan.quantized if layer.block == name]
        result = _quantize_block(model, name, index, layers, options, chains, device, progress)
        progress.block(result)
        yield result
    if outside:
        start = time.monotonic()
        finished = [_round_layer(model, layer, options, device) for layer in outside]
        result = BlockResult("", tuple(finished), seconds=time.monotonic() - start)
        progress.block(result)
        yield result


@dataclass
class _Chains:
    """The two activations that travel along the blocks: through the original ones, and through the quantized ones.

    Attributes:
        reference: input of the next block in the original model, [samples, length, features].
        quantized: its input in the quantized model; the same tensor until something differs.
    """

    recorded: BlockInputs
    reference: torch.Tensor
    quantized: torch.Tensor
    mask: torch.Tensor | None
    batch_size: int

    @classmethod
    def begin(cls, model: OpenModel, options: TuningOptions, tokens: CalibrationTokens) -> _Chains:
        batch_size = min(options.batch_size, len(tokens))
        recorded = capture_block_inputs(model.model, model.structure.block_list, tokens.input_ids, batch_size)
        mask = None if bool(tokens.mask.all()) else tokens.mask
        return cls(recorded, recorded.hidden, recorded.hidden, mask, batch_size)

    def batches(self) -> Iterator[slice]:
        for start in range(0, len(self.reference), self.batch_size):
            yield slice(start, min(start + self.batch_size, len(self.reference)))


class _Runner:
    """Runs one block on batches of hidden states, wherever the block is."""

    def __init__(self, block: nn.Module, index: int, chains: _Chains, device: torch.device, dtype: torch.dtype) -> None:
        self._block, self._device, self._dtype = block, device, dtype
        self._calls: dict[int, BlockCall] = {
            size: calls[index].to(device, dtype) for size, calls in chains.recorded.calls.items()
        }

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._calls[len(hidden)].run(self._block, hidden.to(self._device, self._dtype))

    def over(self, chains: _Chains, inputs: torch.Tensor, observer: ImportanceObserver | None = None) -> torch.Tensor:
        """Every sample through the block; the result stays where the inputs are."""
        output = torch.empty_like(inputs)
        for part in chains.batches():
            if observer is not None and chains.mask is not None:
                observer.mask = chains.mask[part].to(self._device)
            output[part] = self(inputs[part]).to(output.dtype)
        return output


def _quantize_block(
    model: OpenModel,
    name: str,
    index: int,
    layers: Sequence[LayerSpec],
    options: TuningOptions,
    chains: _Chains | None,
    device: torch.device,
    progress: Progress,
) -> BlockResult:
    start = time.monotonic()
    if chains is None:
        finished = [_round_layer(model, layer, options, device) for layer in layers]
        return BlockResult(name, tuple(finished), seconds=time.monotonic() - start)

    stored = model.model.get_submodule(name)
    dtype = _compute_dtype(stored, options, device)
    block = _working_copy(stored, dtype, device)
    runner = _Runner(block, index, chains, device, dtype)
    specs = {layer.name.removeprefix(name + "."): layer for layer in layers}
    linears = {inner: block.get_submodule(inner) for inner in specs}
    observer = ImportanceObserver({i: linears[i] for i, layer in specs.items() if _statistics(layer, options)})
    with observer.watching():
        targets = runner.over(chains, chains.reference, observer)

    tunables = {i: TunableLinear(stored.get_submodule(i), layer, dtype, device) for i, layer in specs.items()}
    if options.search:
        for inner, tunable in tunables.items():
            tunable.search(observer.sums.get(inner))
    outcome = None
    if options.iters and tunables:
        _put(block, tunables)
        inputs = chains.quantized if options.enable_quanted_input else chains.reference
        samples = Samples(inputs, targets, chains.mask, runner)
        generator = torch.Generator().manual_seed(options.seed + index)
        with torch.enable_grad():
            outcome = tune_block(
                list(tunables.values()), samples, options, chains.batch_size, generator, device, progress.step
            )
    _put(block, linears)
    finished = []
    for inner, tunable in tunables.items():
        result = tunable.finish()
        finished.append(result)
        _store(linears[inner], result)
        if block is not stored:
            _store(stored.get_submodule(inner), result)
    # The quantized chain feeds nothing unless a later block is tuned on it.
    if options.iters and options.enable_quanted_input and index + 1 < len(model.structure.blocks):
        chains.quantized = runner.over(chains, chains.quantized)
    chains.reference = targets
    seconds = time.monotonic() - start
    if outcome is None:
        return BlockResult(name, tuple(finished), seconds=seconds)
    return BlockResult(
        name, tuple(finished), outcome.loss_before, outcome.loss_after, outcome.kept_step, seconds=seconds
    )


def _round_layer(model: OpenModel, layer: LayerSpec, options: TuningOptions, device: torch.device) -> LayerResult:
    """Quantize a layer by itself, from nothing but its weight."""
    linear = model.model.get_submodule(layer.name)
    tunable = TunableLinear(linear, layer, linear.weight.dtype, device)
    if options.search:
        tunable.search(None)
    result = tunable.finish()
    _store(linear, result)
    return result


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


def _store(linear: Any, result: LayerResult) -> None:
    """Give a plain layer the weight every runtime will see."""
    weight = result.weight.T if result.layer.transposed else result.weight
    linear.weight.copy_(weight)
