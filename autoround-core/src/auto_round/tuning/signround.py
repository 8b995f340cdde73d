# SPDX-License-Identifier: Apache-2.0
"""Signed gradient descent on the rounding of one block.

Cheng, Zhang, Shen, Cai, He, Lv, Liu: "Optimize Weight Rounding via Signed Gradient Descent for the Quantization of
LLMs", 2023, arXiv:2309.05516, algorithm 1. The step is the sign of the gradient times a step size that falls linearly
to 0. One thing differs: parameters are chosen by the loss on a fixed slice of the samples, looked at a few times, and
not by the luckiest mini-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from auto_round.run.ranks import Ranks
from auto_round.tuning.layer import TunableLinear
from auto_round.tuning.options import TuningOptions

__all__ = ["Samples", "TuningOutcome", "tune_block"]

ALONE = Ranks()
SLICE_SAMPLES = 16
LOSS_SCALE = 1000.0  # keeps float16 gradients from vanishing; the sign does not feel it


@dataclass(frozen=True)
class Samples:
    """What a block is tuned on.

    Attributes:
        inputs: hidden states it will be fed, [samples, length, features].
        targets: what the original block answers, same shape.
        mask: which tokens count, bool [samples, length], or None for all.
        run: hidden states of a batch through the block.
        ranks: the processes that share a batch; each sees its part of it.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    mask: torch.Tensor | None
    run: Callable[[torch.Tensor], torch.Tensor]
    ranks: Ranks = ALONE

    def loss(self, index: torch.Tensor, device: torch.device) -> torch.Tensor:
        """Mean squared error of the block's output over these samples' tokens, float32 scalar.

        Of several ranks each returns its part; their sum is the loss.
        """
        mine = index[self.ranks.part(len(index))]
        if not len(mine):
            return torch.zeros((), device=device, requires_grad=True)
        output = self.run(self.inputs[mine].to(device)).float()
        error = (output - self.targets[mine].to(device).float()).square_()
        if self.mask is None:
            return error.mean() if len(mine) == len(index) else error.sum() / (error[0].numel() * len(index))
        mask = self.mask[mine].to(device)
        return (error.mean(-1) * mask).sum() / self.mask[index].sum().clamp(min=1).to(device)


@dataclass(frozen=True)
class TuningOutcome:
    """Attributes:
    loss_before: loss on the fixed slice with plain rounding.
    loss_after: loss on it with the parameters that were kept.
    kept_step: the step they were taken at.
    """

    loss_before: float
    loss_after: float
    kept_step: int


def tune_block(
    layers: Sequence[TunableLinear],
    samples: Samples,
    options: TuningOptions,
    batch_size: int,
    generator: torch.Generator,
    device: torch.device,
    on_step: Callable[[], None] = lambda: None,
) -> TuningOutcome:
    """Learn the rounding of the layers of one block; they are left with the best parameters found.

    Args:
        layers: the block's layers, which `samples.run` computes with.
        batch_size: samples per forward pass, at most as many as there are.
        generator: decides the order of samples.
        on_step: called after every step.
    """
    for layer in layers:
        layer.make_learnable(options.enable_minmax_tuning)
    slots = [
        (p, options.step_size(bits) if name == "v" else options.minmax_step_size(bits))
        for layer in layers
        for bits in [layer.layer.scheme.bits]
        for name, p in layer.learnt.items()
    ]
    keeper = _Keeper([p for p, _ in slots], samples, batch_size, device)
    keeper.look(0)
    for layer in layers:
        layer.check_weight()
    looks = _looks(options.iters)
    batches = _batches(len(samples.inputs), batch_size, generator)
    for step in range(options.iters):
        for _ in range(options.gradient_accumulate_steps):
            (samples.loss(next(batches), device) * LOSS_SCALE).backward()
        if samples.ranks.size > 1:
            for parameter, _ in slots:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                samples.ranks.add_up(parameter.grad)
        _sign_step(slots, 1.0 - step / options.iters)
        for layer in layers:
            layer.clamp_learnt()
        on_step()
        if step + 1 in looks:
            keeper.look(step + 1)
    return keeper.restore()


@torch.no_grad()
def _sign_step(slots: Sequence[tuple[torch.nn.Parameter, float]], factor: float) -> None:
    for parameter, step_size in slots:
        if parameter.grad is not None:
            parameter.sub_(parameter.grad.sign_(), alpha=step_size * factor)
            parameter.grad = None


def _looks(iters: int) -> set[int]:
    """After which steps to look at the fixed slice: rarely, and late, where the steps are small."""
    return {max(1, round(iters * part)) for part in (0.5, 0.75, 0.9, 1.0)} if iters else set()


def _batches(count: int, size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Shuffled batches without end; every sample once before any twice, an incomplete last batch left out."""
    while True:
        order = torch.randperm(count, generator=generator)
        yield from (part for part in order.split(size) if len(part) == size)


class _Keeper:
    """Remembers the parameters with the least loss on a fixed slice of the samples."""

    def __init__(
        self, parameters: Sequence[torch.nn.Parameter], samples: Samples, batch_size: int, device: torch.device
    ) -> None:
        self._parameters = parameters
        self._samples = samples
        self._device = device
        count = len(samples.inputs)
        wanted = max(batch_size, min(SLICE_SAMPLES, count) // batch_size * batch_size)
        # Spread over all samples, in whole batches, because the block was recorded for that batch size.
        spread = torch.linspace(0, count - 1, wanted).round().long()
        self._slice = spread.split(batch_size)
        self._kept = [torch.empty_like(p) for p in parameters]
        self._first = self._least = float("inf")
        self._step = 0

    @torch.no_grad()
    def look(self, step: int) -> None:
        parts = [self._samples.loss(part, self._device).double() for part in self._slice]
        loss = self._samples.ranks.add_up(torch.stack(parts).cpu()).mean().item()
        if step == 0:
            self._first = loss
        if loss < self._least or step == 0:
            self._least, self._step = loss, step
            for kept, parameter in zip(self._kept, self._parameters, strict=True):
                kept.copy_(parameter)

    @torch.no_grad()
    def restore(self) -> TuningOutcome:
        for kept, parameter in zip(self._kept, self._parameters, strict=True):
            parameter.copy_(kept)
        return TuningOutcome(self._first, self._least, self._step)
