# SPDX-License-Identifier: Apache-2.0
"""The loop over a model: part by part, brought in, quantized, handed out and let go of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch

from auto_round.calibration.inputs import run_after_blocks
from auto_round.calibration.observer import InputObserver
from auto_round.calibration.store import ActivationStore
from auto_round.model.weights import OUTSIDE
from auto_round.plan import LayerSpec, Plan
from auto_round.run.allocator import freed_memory_returned, give_back_freed_memory
from auto_round.run.ranks import Ranks
from auto_round.tuning.block import quantize_block
from auto_round.tuning.chains import Chains
from auto_round.tuning.prepared import install, observer_of, wants_importance
from auto_round.tuning.result import BlockResult
from auto_round.tuning.rounding import layer_sets, round_layers, round_sets

if TYPE_CHECKING:
    from auto_round.calibration import CalibrationTokens
    from auto_round.model.opened import OpenModel
    from auto_round.tuning.end_to_end import Outcome
    from auto_round.tuning.options import TuningOptions

__all__ = ["Engine", "Progress", "needs_calibration", "parts_of"]


class Progress(Protocol):
    """Told how far the work is."""

    def start(self, blocks: int, steps_per_block: int, done: int = 0, together: int = 0) -> None:
        """Work begins; a block counts as `steps_per_block` steps; some may be done already.

        Args:
            together: steps of all blocks that will follow.
        """

    def step(self) -> None:
        """One step of the running block is done."""

    def block(self, result: BlockResult) -> None:
        """A block is done."""

    def end_to_end(self, steps: int, done: int) -> None:
        """Steps of all blocks together begin; some may be done already."""

    def end_to_end_done(self, outcome: Outcome) -> None:
        """They are done."""


def needs_calibration(plan: Plan, options: TuningOptions) -> bool:
    """Whether data must flow through the model at all."""
    if plan.cache is not None:
        return True
    return (
        options.iters > 0
        or options.e2e_iters > 0
        or options.improved
        or any(wants_importance(s, options) or s.static_activations for s in plan.quantized)
    )


def parts_of(plan: Plan, options: TuningOptions) -> list[tuple[str, tuple[LayerSpec, ...]]]:
    """What the work falls into, in order: blocks and the layers outside them, or where no data flows sets of layers.

    Returns:
        for each part the name of its block, "" outside the blocks, and its layers.
    """
    if not needs_calibration(plan, options):
        return [(layers[0].block or OUTSIDE, layers) for layers in layer_sets(plan)]
    parts = [(name, tuple(layer for layer in plan.quantized if layer.block == name)) for name in plan.blocks]
    outside = tuple(layer for layer in plan.quantized if layer.block is None)
    return [*parts, (OUTSIDE, outside)] if outside else parts


@dataclass
class Engine:
    """Quantizes a model part by part.

    Attributes:
        model: what is quantized.
        plan: how.
        options: how, too.
        tokens: calibration data; may be None if `needs_calibration` says so.
        device: where blocks compute.
        progress: told how far it is.
        store: where activations are kept.
        ranks: the processes that share the work.
        keep: whether the model stays in memory, with the weights that the codes decode to.
        workers: sets of layers that are rounded at once where no data flows.
        chains: the activations between the parts that are done and those that are not; None before the first.
    """

    model: OpenModel
    plan: Plan
    options: TuningOptions
    tokens: CalibrationTokens | None
    device: torch.device
    progress: Progress
    store: ActivationStore = field(default_factory=ActivationStore)
    ranks: Ranks = field(default_factory=Ranks)
    keep: bool = True
    workers: int = 1
    chains: Chains | None = None

    @torch.no_grad()
    def begin(self, done: int = 0, results: Iterable[BlockResult] = ()) -> None:
        """Make ready for the parts after the first `done`.

        Where data flows, `chains` then holds the inputs of the first block; whoever has those of a later one, because
        some parts are done, puts them there.

        Args:
            results: of the parts that are done; they take their places in the model, if it is kept.
        """
        outside = [layer for layer in self.plan.quantized if layer.block is None]
        flows = needs_calibration(self.plan, self.options)
        if flows or self.keep or outside:
            self.model.bring(OUTSIDE)
        self.model.untie(layer.name for layer in outside if layer.tied)
        if flows:
            assert self.tokens is not None
            first = self.model.structure.blocks[0]
            self.model.bring(first)
            self.chains = Chains.begin(self.model, self.options, self.tokens, self.store, self.ranks)
            if done and not self.keep:
                self.model.release(first)
            if not self.keep and not outside:
                self.model.release(OUTSIDE)  # the embedding has done its part
        if self.keep:
            self.model.load()
            for result in results:
                for layer in result.layers:
                    install(self.model.model.get_submodule(layer.layer.name), layer)
                for changed, tensor in result.changed.items():
                    self.model.model.get_parameter(changed).copy_(tensor)
        give_back_freed_memory()
        parts = len(parts_of(self.plan, self.options))
        self.progress.start(parts, max(1, self.options.iters), done, self.options.e2e_iters)

    def run(self, done: int = 0) -> Iterator[BlockResult]:
        """The parts after the first `done`, each as soon as it is finished; its weights are let go of afterwards."""
        parts = parts_of(self.plan, self.options)[done:]
        if not needs_calibration(self.plan, self.options):
            yield from self.round([layers for _, layers in parts])
            return
        for name, layers in parts:
            with freed_memory_returned() if self.options.low_memory else nullcontext():
                result = self._quantize(name, layers)
            self.progress.block(result)
            yield result
            del result  # not to be there while the next one is made
            if not self.keep:
                self.model.release(name)
            give_back_freed_memory()

    def round(self, sets: Sequence[Sequence[LayerSpec]]) -> Iterator[BlockResult]:
        """Sets of layers, rounded by themselves."""
        for result in round_sets(self.model, sets, self.options, self.device, workers=self.workers, keep=self.keep):
            self.progress.block(result)
            yield result
            del result
            give_back_freed_memory()
        if not self.keep:
            for block in self.plan.blocks:
                self.model.release(block)

    @torch.no_grad()
    def _quantize(self, name: str, layers: Sequence[LayerSpec]) -> BlockResult:
        assert self.chains is not None
        self.model.bring(name)
        if name != OUTSIDE:
            return quantize_block(
                self.model, name, layers, self.options, self.chains, self.device, self.progress.step, self.plan.cache
            )
        linears = self.model.linears([layer.name for layer in layers], keep=True)
        result = round_layers(layers, linears, self.options, self.device, self._observe_outside(layers))
        for layer in result.layers:
            install(linears[layer.layer.name], layer)
        return result

    def _observe_outside(self, layers: Sequence[LayerSpec]) -> InputObserver:
        """Watch the layers behind the blocks, fed with what the original blocks answered."""
        assert self.chains is not None
        assert self.tokens is not None
        modules = {layer.name: self.model.model.get_submodule(layer.name) for layer in layers}
        observer = observer_of(modules, layers, self.options)
        chains, blocks = self.chains, self.model.structure.block_list
        with observer.watching():
            for part in chains.batches():
                observer.mask = None if chains.mask is None else chains.mask[part]
                ids, hidden, returned = self.tokens.input_ids[part], chains.reference[part], chains.recorded.returned
                run_after_blocks(self.model.model, blocks, ids, hidden, returned=returned)
        observer.gather(chains.ranks)
        return observer
