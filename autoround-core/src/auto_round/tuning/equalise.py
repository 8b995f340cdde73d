# SPDX-License-Identifier: Apache-2.0
"""Channels made equal before a block is quantized, so that a few loud ones do not set the steps of the others.

A channel with large inputs to a layer or large weights in it can be scaled where `find_rescalings` says that nothing
else notices. With a the size of a channel over calibration and w that of its weights, both root mean squares,

    exponent = round(p log2(a) - (1 - p) log2(w)),    p = 0: equal weights, p = 1: equal inputs,

after Xiao et al. 2023, arXiv:2211.10438, equation 4, and Lin et al. 2024, arXiv:2306.00978, section 3.2. Which p, or
nothing at all, is decided by the error of the block's output with the readers quantized.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from auto_round.calibration.observer import InputObserver
from auto_round.plan import LayerSpec
from auto_round.tuning.layer import TunableLinear
from auto_round.tuning.options import TuningOptions
from auto_round.tuning.prepared import observer_of, prepare
from auto_round.tuning.rescaling import Rescaling, columns_first, rescale, rows_of

__all__ = ["Trial", "equalise", "exponents_for"]

PARTS = (0.25, 0.5, 0.75)
"""The p that are tried."""

MOST = 12
"""Largest exponent either way: whatever lies beyond is a dead channel, and bfloat16 has a hundred more."""

GAIN = 0.005
"""The least relative gain that counts: less is noise of the few samples looked at."""


@dataclass(frozen=True)
class Trial:
    """What a choice is judged with.

    Attributes:
        blocks: the block in the dtype and on the device where it computes, and others to be scaled with it.
        layers: what is planned for its layers, by their names in the block.
        watch: run some samples with an observer watching.
        loss: mean squared error of the block's output on some samples.
        options: how layers are prepared.
        device, dtype: where the block computes, and in what.
    """

    blocks: Sequence[nn.Module]
    layers: Mapping[str, LayerSpec]
    watch: Callable[[InputObserver], None]
    loss: Callable[[], float]
    options: TuningOptions
    device: torch.device
    dtype: torch.dtype

    @property
    def block(self) -> nn.Module:
        """The one that computes."""
        return self.blocks[0]

    def scale(self, place: Rescaling, exponents: torch.Tensor) -> bool:
        """Scale channels; nothing is done and False returned where digits would be lost: in float16, near its ends."""
        names = (place.writer, *place.readers)
        before = [p.clone() for block in self.blocks for n in names for p in block.get_submodule(n).parameters()]
        for block in self.blocks:
            rescale(block, place, exponents)
        after = [p.clone() for block in self.blocks for n in names for p in block.get_submodule(n).parameters()]
        for block in self.blocks:
            rescale(block, place, -exponents)
        now = [p for block in self.blocks for n in names for p in block.get_submodule(n).parameters()]
        exact = all(torch.equal(p, old) for p, old in zip(now, before, strict=True))
        for p, value in zip(now, after if exact else before, strict=True):
            p.copy_(value)
        return exact

    def error(self, names: Sequence[str]) -> float:
        """The error with these layers quantized and all others as they are."""
        linears: dict[str, Any] = {self.layers[name].name: self.block.get_submodule(name) for name in names}
        specs = [self.layers[name] for name in names]
        observer = observer_of(linears, specs, self.options)
        self.watch(observer)
        # An expert that no token was sent to has no range, and no part in the error.
        seen = [s for s in specs if s.name in observer.tokens]
        tunables = {s.name: TunableLinear(linears[s.name], s, self.dtype, self.device) for s in seen}
        prepare(tunables, observer, self.options)
        with ExitStack() as stack:
            for name, tunable in tunables.items():
                handle = linears[name].register_forward_hook(_answering(tunable))
                stack.callback(handle.remove)
            return self.loss()


def _answering(tunable: TunableLinear) -> Any:
    weight = tunable.quantized_weight()

    def quantized(_module: nn.Module, args: tuple[torch.Tensor, ...], _answer: torch.Tensor) -> torch.Tensor:
        return tunable.compute(args[0], weight)

    return quantized


@torch.no_grad()
def equalise(places: Sequence[Rescaling], trial: Trial) -> list[tuple[Rescaling, torch.Tensor]]:
    """Scale the channels of a block where it helps, place after place; the blocks of the trial are changed.

    Returns:
        what was done: places and the exponents of their rows.
    """
    done = []
    for place in places:
        readers = [name for name in place.readers if name in trial.layers]
        inputs, weights = _sizes(place, trial)
        if not readers or not bool((inputs > 0).any()):
            continue
        least, chosen = trial.error(readers) * (1.0 - GAIN), None
        for part in PARTS:
            exponents = exponents_for(inputs, weights, part)
            if not trial.scale(place, exponents):
                continue
            error = trial.error(readers)
            trial.scale(place, -exponents)
            if error < least:
                least, chosen = error, exponents
        if chosen is not None:
            trial.scale(place, chosen)
            done.append((place, chosen))
    return done


def exponents_for(inputs: torch.Tensor, weights: torch.Tensor, part: float) -> torch.Tensor:
    """The powers of two that channels' weights are multiplied by, around a median of 0; whole numbers, float32.

    Args:
        inputs, weights: sizes of each channel, of its activations and of the weights that read it; float32 [channels].
        part: p of the formula above.
    """
    alive = (inputs > 0) & (weights > 0)
    if not bool(alive.any()):
        return torch.zeros_like(inputs)
    ones = torch.ones_like(inputs)
    exact = part * torch.where(alive, inputs, ones).log2() - (1 - part) * torch.where(alive, weights, ones).log2()
    return torch.where(alive, (exact - exact[alive].median()).round().clamp(-MOST, MOST), 0.0)


def _sizes(place: Rescaling, trial: Trial) -> tuple[torch.Tensor, torch.Tensor]:
    """For each row of the writer the root mean square of its channel, and of the largest column that reads it."""
    names = [name for name in place.readers if name in trial.layers]
    linears = {name: trial.block.get_submodule(name) for name in names}
    observer = InputObserver(linears, names, ())
    trial.watch(observer)
    writer: Any = trial.block.get_submodule(place.writer)
    inputs = torch.zeros(rows_of(writer), device=trial.device)
    weights = torch.zeros_like(inputs)
    for name in names:
        rows = place.readers[name].to(trial.device)
        columns = columns_first(linears[name]).float().square().mean(-1).sqrt()
        weights.scatter_reduce_(0, rows, columns, "amax")
        if name in observer.sums:
            size = (observer.sums[name] / observer.tokens[name]).sqrt()
            inputs.scatter_reduce_(0, rows, size, "amax")
    return inputs, weights
