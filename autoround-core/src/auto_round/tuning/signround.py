# SPDX-License-Identifier: Apache-2.0
"""Signed gradient descent on the rounding of one block.

Cheng, Zhang, Shen, Cai, He, Lv, Liu: "Optimize Weight Rounding via Signed Gradient Descent for the Quantization of
LLMs", 2023, arXiv:2309.05516, algorithm 1. The step is the sign of the gradient times a step size that falls linearly
to 0. One thing differs: parameters are chosen by the loss on a fixed slice of the samples, looked at a few times, and
not by the luckiest mini-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch

from auto_round.run.allocator import freed_memory_kept, give_back_freed_memory
from auto_round.run.ranks import Ranks
from auto_round.tuning.layer import TunableLinear
from auto_round.tuning.options import TuningOptions
from auto_round.tuning.own_error import OwnErrors
from auto_round.tuning.squared_error import sum_of_squares

__all__ = ["SLICE_SAMPLES", "FixedSlice", "Samples", "Slot", "TuningOutcome", "batches", "sign_step", "tune_block"]

ALONE = Ranks()
SLICE_SAMPLES = 16
PIECE = 1 << 18  # numbers stepped at a time on a CPU: their signs stay in its caches
SPARE = 1 << 28  # bytes that may lie idle while a step's memory waits for a look's, and the other way round
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
        output = self.run(_some(self.inputs, mine).to(device))
        target = _some(self.targets, mine).to(device)
        if self.mask is None:
            return sum_of_squares(output, target) / (target[0].numel() * len(index))
        tokens = self.mask[index].sum().clamp(min=1).to(device)
        return sum_of_squares(output, target, self.mask[mine].to(device)) / (tokens * target.shape[-1])

    def mask_of(self, index: torch.Tensor, device: torch.device) -> torch.Tensor | None:
        """Which tokens of this rank's part of a batch count, None for all."""
        return None if self.mask is None else self.mask[index[self.ranks.part(len(index))]].to(device)


def _some(samples: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """Copies of these; `samples[which]` takes three times as long on CPUs."""
    return samples.index_select(0, which.to(samples.device))


@dataclass(frozen=True)
class TuningOutcome:
    """Attributes:
    loss_before: loss on the fixed slice with plain rounding.
    loss_after: loss on it with the parameters that were kept.
    kept_step: the step they were taken at.
    rival_stays: whether no step did better than what the layers had before.
    """

    loss_before: float
    loss_after: float
    kept_step: int
    rival_stays: bool = False


def tune_block(
    layers: Sequence[TunableLinear],
    samples: Samples,
    options: TuningOptions,
    batch_size: int,
    generator: torch.Generator,
    device: torch.device,
    on_step: Callable[[], None] = lambda: None,
    rival: float | None = None,
    trust: float = 1.0,
) -> TuningOutcome:
    """Learn the rounding of the layers of one block; they keep what the best parameters found give.

    Args:
        layers: the block's layers, which `samples.run` computes with.
        batch_size: samples per forward pass, at most as many as there are.
        generator: decides the order of samples.
        on_step: called after every step.
        rival: the loss, on the fixed slice, of what the layers keep already; it stays unless steps do better.
        trust: for that to be, a part of their loss that it must not exceed.
    """
    for layer in layers:
        layer.make_learnable(options.enable_minmax_tuning, thrifty=options.low_memory)
    of_layers = [_slots_of(learnt, layer, options) for layer in layers for learnt in layer.learning]
    slots = [slot for of_layer in of_layers for slot in of_layer]
    fixed = FixedSlice(samples, batch_size, device)
    keeper = _Keeper(layers, slots, fixed, rival, trust, learns_on=options.e2e_iters > 0)
    keeper.look(0)
    for layer in layers:
        layer.check_weight()
    if not slots:  # data types that learn nothing
        return keeper.settle()
    alone = [member for layer in layers for member in layer.members]
    own = OwnErrors(alone, keeper.first) if options.improved else None
    for layer in alone:
        layer.own_errors = own
    looks = _looks(options.iters)
    order = batches(len(samples.inputs), batch_size, generator)
    at_once = options.gradient_accumulate_steps == 1 and samples.ranks.size == 1
    with nullcontext() if options.low_memory else freed_memory_kept():
        for step in range(options.iters):
            factor = 1.0 - step / options.iters
            with _stepping(of_layers, factor) if at_once else nullcontext():
                for _ in range(options.gradient_accumulate_steps):
                    (_loss(samples, next(order), own, device) * LOSS_SCALE).backward()
            if samples.ranks.size > 1:
                for parameter in (slot.parameter for slot in slots):
                    if parameter.grad is None:
                        parameter.grad = torch.zeros_like(parameter)
                    samples.ranks.add_up(parameter.grad)
            sign_step(slots, factor)
            for layer in layers:
                layer.clamp_learnt()
            on_step()
            if step + 1 in looks:
                give_back_freed_memory(beyond=SPARE)
                keeper.look(step + 1)
                give_back_freed_memory(beyond=SPARE)
    for layer in alone:
        layer.own_errors = None
    return keeper.settle()


def _loss(samples: Samples, batch: torch.Tensor, own: OwnErrors | None, device: torch.device) -> torch.Tensor:
    """The loss of a batch, with a part of its layers' own errors where they count."""
    if own is None:
        return samples.loss(batch, device)
    own.mask = samples.mask_of(batch, device)
    return samples.loss(batch, device) + own.take() / samples.ranks.size


@dataclass(frozen=True, eq=False)
class Slot:
    """What is stepped.

    Attributes:
        parameter: what is learnt.
        step_size: of the first step.
        neutral: the value it starts from, everywhere.
    """

    parameter: torch.nn.Parameter
    step_size: float
    neutral: float


def _slots_of(learnt: Mapping[str, torch.nn.Parameter], layer: TunableLinear, options: TuningOptions) -> list[Slot]:
    bits = layer.layer.scheme.bits
    return [
        Slot(p, options.step_size(bits), 0.0) if name == "v" else Slot(p, options.minmax_step_size(bits), 1.0)
        for name, p in learnt.items()
    ]


@torch.no_grad()
def sign_step(slots: Sequence[Slot], factor: float) -> None:
    """Step by this part of the first step, against the signs of the gradients, which are gone then."""
    for slot in slots:
        if slot.parameter.grad is not None:
            moved, signs = slot.parameter.view(-1), slot.parameter.grad.view(-1)
            size = PIECE if moved.device.type == "cpu" else max(1, moved.numel())
            for some, by in zip(moved.split(size), signs.split(size), strict=True):
                some.sub_(by.sign(), alpha=slot.step_size * factor)
            slot.parameter.grad = None


@contextmanager
def _stepping(of_layers: Sequence[Sequence[Slot]], factor: float) -> Iterator[None]:
    """Step each layer within the backward pass, as soon as all its gradients are there, so that few exist at a time.

    Not sooner: what else of the layer is still to be computed may have kept the parameter that has its gradient.
    """
    handles = []
    for slots in of_layers:
        missing = {id(slot.parameter) for slot in slots}

        def arrived(parameter: torch.Tensor, slots: Sequence[Slot] = slots, missing: set[int] = missing) -> None:
            missing.discard(id(parameter))
            if not missing:
                sign_step(slots, factor)

        handles += [slot.parameter.register_post_accumulate_grad_hook(arrived) for slot in slots]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _looks(iters: int) -> set[int]:
    """After which steps to look at the fixed slice: rarely, and late, where the steps are small."""
    return {max(1, round(iters * part)) for part in (0.5, 0.75, 0.9, 1.0)} if iters else set()


def batches(count: int, size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Shuffled batches without end; every sample once before any twice, an incomplete last batch left out."""
    while True:
        order = torch.randperm(count, generator=generator)
        yield from (part for part in order.split(size) if len(part) == size)


class FixedSlice:
    """Some of the samples, always the same, by which parameters are chosen."""

    def __init__(self, samples: Samples, batch_size: int, device: torch.device) -> None:
        self._samples, self._device = samples, device
        count = len(samples.inputs)
        wanted = max(batch_size, min(SLICE_SAMPLES, count) // batch_size * batch_size)
        # Spread over all samples, in whole batches, because the block was recorded for that batch size.
        spread = torch.linspace(0, count - 1, wanted).round().long()
        self._parts = spread.split(batch_size)

    @torch.no_grad()
    def loss(self) -> float:
        """The block's loss on them as it is now."""
        parts = [self._samples.loss(part, self._device).double() for part in self._parts]
        return self._samples.ranks.add_up(torch.stack(parts).cpu()).mean().item()


class _Keeper:
    """Has the layers keep what they have where the loss on a fixed slice of the samples is least.

    Attributes:
        first: the loss before any step.
    """

    def __init__(
        self,
        layers: Sequence[TunableLinear],
        slots: Sequence[Slot],
        fixed: FixedSlice,
        rival: float | None,
        trust: float,
        *,
        learns_on: bool,
    ) -> None:
        """Args:
        learns_on: whether what is learnt, too, is to end as it was where the loss was least, and not only codes.
        """
        self._layers, self._slots, self._fixed = layers, slots, fixed
        self._learns_on = learns_on
        self._values: list[torch.Tensor] = []
        self.first = float("inf")
        self._rival = rival
        self._least = float("inf") if rival is None else rival / trust
        self._step = 0
        self._better = rival is not None

    def look(self, step: int) -> None:
        loss = self._fixed.loss()
        if step == 0:
            self.first = loss
        if loss >= self._least:
            return
        self._least, self._step, self._rival = loss, step, None
        for layer in self._layers:
            if step:
                layer.keep()
            else:
                layer.forget()
        self._better = step > 0
        if self._learns_on and self._better:  # the start is neutral, and needs no copy
            self._values = [slot.parameter.detach().clone() for slot in self._slots]

    @torch.no_grad()
    def settle(self) -> TuningOutcome:
        """Where nothing was better than the start the layers are as they were before the first step."""
        if not self._better:
            for slot in self._slots:
                slot.parameter.fill_(slot.neutral)
        elif self._values:
            for slot, value in zip(self._slots, self._values, strict=True):
                slot.parameter.copy_(value)
        if self._rival is not None:
            return TuningOutcome(self.first, self._rival, self._step, rival_stays=True)
        return TuningOutcome(self.first, self._least, self._step)
