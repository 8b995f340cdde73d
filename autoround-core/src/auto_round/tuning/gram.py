# SPDX-License-Identifier: Apache-2.0
"""What layers of a block get, and would get in the original model, while those before them are quantized one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from auto_round.model.structure import without_numbers
from auto_round.tuning.chains import PROBE_SAMPLES, Chains, Runner
from auto_round.tuning.compensation import Inputs, compensate
from auto_round.tuning.layer import TunableLinear
from auto_round.tuning.partial_pass import PartialPass

if TYPE_CHECKING:
    from auto_round.tuning.options import TuningOptions

__all__ = ["LARGEST_INPUT", "compensate_block", "stages"]

LARGEST_INPUT = 1 << 14
"""Inputs of a layer beyond which its Gram matrices, a gigabyte each, and what is made of them are left alone."""


@torch.no_grad()
def compensate_block(
    linears: Mapping[str, nn.Module],
    tunables: Mapping[str, TunableLinear],
    runner: Runner,
    chains: Chains,
    options: TuningOptions,
) -> list[str]:
    """Let the layers of a block make up for what rounding changes, those that come first in it first.

    Args:
        linears: the layers as they are, in the block that the runner runs; left as they were.
        tunables: the same being quantized, by the same names.

    Returns:
        the names of those that do now.
    """
    source = chains.quantized if options.enable_quanted_input else chains.reference
    done: list[str] = []
    finished: dict[str, TunableLinear] = {}
    for names in stages(linears, lambda: runner(chains.reference[:PROBE_SAMPLES])):
        small = [name for name in names if tunables[name].weight.shape[1] <= LARGEST_INPUT]
        collector = _Collector({name: linears[name] for name in small}, tunables, chains)
        run = PartialPass(runner, [linears[name] for name in small])
        with ExitStack() as stack, collector.watching():
            for name, tunable in finished.items():
                stack.enter_context(_answering(linears[name], tunable, collector))
            for part in chains.batches() if small else ():
                collector.begin(part)
                run(chains.reference[part])
                collector.original = False
                run(source[part])
        done += [n for n, inputs in collector.gathered().items() if compensate(tunables[n], inputs)]
        finished |= {name: tunables[name] for name in names}
    return done


def stages(linears: Mapping[str, nn.Module], run: Callable[[], object]) -> list[list[str]]:
    """Layers in the order they run in; those with one input, and experts of one kind, together."""
    calls: list[tuple[str, torch.Tensor]] = []

    def noting(name: str) -> Any:
        return lambda _module, args: calls.append((name, args[0]))

    handles = [module.register_forward_pre_hook(noting(name)) for name, module in linears.items()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    found: list[list[str]] = []
    by_kind: dict[str, list[str]] = {}
    by_input: dict[int, list[str]] = {}
    for name, x in calls:
        stage = by_kind.get(without_numbers(name)) or by_input.get(id(x))
        if stage is None:
            stage = []
            found.append(stage)
        by_kind[without_numbers(name)] = by_input[id(x)] = stage
    # Every expert, whether a token of this run reached it or not.
    for name in linears:
        if without_numbers(name) in by_kind:
            by_kind[without_numbers(name)].append(name)
    return found


class _Collector:
    """Sums up products of inputs over batches that run twice, as in the original model and as in the quantized one.

    Attributes:
        original: whether the original model's batch is running.
    """

    def __init__(self, linears: Mapping[str, nn.Module], tunables: Mapping[str, TunableLinear], chains: Chains) -> None:
        self.original = True
        self._linears, self._tunables, self._chains = linears, tunables, chains
        self._mask: torch.Tensor | None = None
        self._shape = torch.Size(())
        self._running: dict[str, torch.Tensor] = {}
        self._before: dict[str, torch.Tensor] = {}
        self._like: dict[str, str] = {}
        self._inputs: dict[str, Inputs] = {}

    def begin(self, part: slice) -> None:
        """A batch starts."""
        chains = self._chains
        self.original, self._mask = True, None if chains.mask is None else chains.mask[part]
        self._shape = chains.reference[part].shape[:2]
        self._before, self._running = {}, {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Collect for as long as the context lasts."""
        handles = [module.register_forward_pre_hook(self._hook(name)) for name, module in self._linears.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def gathered(self) -> dict[str, Inputs]:
        """What was collected, by all ranks of the run."""
        ranks = self._chains.ranks
        if ranks.size == 1:
            return {name: self._inputs[self._like[name]] for name in self._linears if name in self._like}
        found = {}
        for name, linear in self._linears.items():
            width, device = self._tunables[name].weight.shape[1], next(linear.parameters()).device
            mine = self._inputs.get(self._like.get(name, ""))
            gram, shift = torch.zeros(width, width), torch.zeros(width, width)
            if mine is not None:
                gram, shift = mine.gram.cpu(), shift if mine.shift is None else mine.shift.cpu()
            # A layer that sees all tokens in order does so on every rank that has a batch.
            counts = [0, 0] if mine is None else [mine.tokens, int(mine.shift is not None)]
            tokens, ordered = ranks.add_up(torch.tensor(counts)).tolist()
            gram, shift = ranks.add_up(gram).to(device), ranks.add_up(shift).to(device)
            found[name] = Inputs(gram, shift if ordered else None, tokens)
        return found

    def _hook(self, name: str) -> Any:
        def collect(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            x = args[0]
            # Experts see a selection of the tokens, another one in each model.
            ordered = x.shape[:-1] == self._shape
            if self._like.setdefault(name, self._first_with(name, x)) != name:
                return
            if not self.original:
                self._add(name, x, self._before.pop(name, None) if ordered else None)
            elif ordered:
                self._before[name] = x

        return collect

    def _first_with(self, name: str, x: torch.Tensor) -> str:
        """The first layer that is fed the same, and sees it the same way: their sums are the same, too."""
        for other, running in self._running.items():
            if running is x and self._tunables[other].layer.scheme == self._tunables[name].layer.scheme:
                return other
        self._running[name] = x
        return name

    def _add(self, name: str, x: torch.Tensor, before: torch.Tensor | None) -> None:
        seen = self._tunables[name].as_seen(x)
        if self._mask is not None and x.shape[:-1] == self._shape:
            mask = self._mask.to(x.device)
            seen, before = seen[mask], None if before is None else before[mask]
        flat = seen.reshape(-1, seen.shape[-1]).float()
        if not len(flat):
            return
        gram = flat.T @ flat
        shift = None if before is None else (before.reshape(flat.shape).float() - flat).T @ flat
        if name not in self._inputs:
            self._inputs[name] = Inputs(gram, shift, len(flat))
            return
        sums = self._inputs[name]
        sums.gram += gram
        sums.tokens += len(flat)
        if sums.shift is not None and shift is not None:
            sums.shift += shift


@contextmanager
def _answering(linear: nn.Module, tunable: TunableLinear, collector: _Collector) -> Iterator[None]:
    """Let a layer answer as it will be quantized while the quantized model's batches run."""
    weight = tunable.quantized_weight()

    def answer(_module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output if collector.original else tunable.compute(args[0], weight)

    handle = linear.register_forward_hook(answer)
    try:
        yield
    finally:
        handle.remove()
