# SPDX-License-Identifier: Apache-2.0
"""Steps of all blocks together, towards the next-token distributions of the original model.

What blocks were tuned for one by one adds up to a model that is further from its original than it need be. With p the
original model's distribution of the token after each token of the calibration text and h its hidden state after each
block, q and g those of the quantized model,

    loss = mean over tokens of KL(p || q) + HIDDEN * mean over blocks of |g - h|^2 / |h|^2

over text that changes each time it is read (`retold`), straight through the rounding (Hinton, Vinyals, Dean 2015,
arXiv:1503.02531, at temperature 1; hidden states as in Sun et al. 2019, arXiv:1908.09355). As in blocks, steps go by
signs, but they are much smaller, and the signs are those of gradients added up over some steps (Signum: Bernstein et
al. 2018, arXiv:1802.04434): what the whole model says of one weight in one batch is mostly chance. Chen et al. 2024,
arXiv:2407.11062, train scales that way after their blocks; here the rounding goes on being learnt, too. What is better
in the end is decided by the first term alone, over the text as it is.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from auto_round.calibration.attention import attention_by_rows
from auto_round.run.allocator import freed_memory_kept
from auto_round.tuning.divergence import divergence
from auto_round.tuning.layer import TunableLinear
from auto_round.tuning.prepared import in_place, put_weight, relative_error
from auto_round.tuning.result import BlockResult, LayerResult
from auto_round.tuning.retold import Reading, RetoldText, readings
from auto_round.tuning.signround import SLICE_SAMPLES, Slot, sign_step
from auto_round.tuning.whole_pass import whole_pass

if TYPE_CHECKING:
    from auto_round.calibration import CalibrationTokens
    from auto_round.tuning.options import TuningOptions

__all__ = ["Checkpoint", "Outcome", "State", "tune_end_to_end"]

STEP, SCALE_STEP = 0.0005, 0.00015
"""First step of `v`, and of `min_scale` and `max_scale`; both fall linearly to 0."""

MOMENTUM = 0.8
"""What a step leaves of the gradients before it."""

HIDDEN = 0.6
"""What hidden states count beside the distributions: with them more is learnt of a text, and less of it by heart."""

TINY = torch.finfo(torch.float32).tiny

SAVED = 300.0
"""Seconds of work that may be lost."""

State = dict[str, torch.Tensor]
"""Everything that steps change, by name."""


@dataclass(frozen=True)
class Outcome:
    """Attributes:
    before, after: divergence from the original model's distributions on the fixed slice, in nats.
    """

    before: float
    after: float


@dataclass(frozen=True)
class Checkpoint:
    """Where a run that is cut off goes on.

    Attributes:
        step: how many steps are done.
        state: what they came to; empty where none are.
        save: keeps both.
    """

    step: int = 0
    state: State = field(default_factory=dict)
    save: Callable[[int, State], None] = lambda _step, _state: None


def tune_end_to_end(
    model: Any,
    results: Sequence[BlockResult],
    tokens: CalibrationTokens,
    options: TuningOptions,
    device: torch.device,
    checkpoint: Checkpoint,
    on_step: Callable[[], None] = lambda: None,
) -> tuple[list[BlockResult], Outcome]:
    """Go on from where the blocks were left.

    Args:
        model: its modules, with the weights that the results decode to.
        results: of all parts, their layers with `latent`.
        tokens: calibration data.
        device: where to compute; the model is back where it was afterwards.

    Returns:
        the results with what the steps came to, if that is better on a fixed slice of the samples, and as they were if
        it is not; without `latent`.
    """
    given = {layer.layer.name: layer for result in results for layer in result.layers}
    linears = {name: model.get_submodule(name) for name in given}
    with _computing(model, device, options.compute_dtype) as dtype:
        voice = _Voice()
        layers = {n: _Layer(layer, linears[n], dtype, device, voice) for n, layer in given.items()}
        batch_size = tokens.per_batch(options.batch_size)
        at_once = whole_pass(model, batch_size, tokens.input_ids.shape[1])
        with in_place(model, layers, linears), freed_memory_kept(), attention_by_rows(device):
            text = RetoldText(tokens)
            loss = _Loss(model, text, voice, device, at_once.samples)
            slice_ = torch.linspace(0, len(tokens) - 1, min(SLICE_SAMPLES, len(tokens))).round().long()
            before = loss.mean(slice_, "blocks")
            steps = _Steps(layers, text, checkpoint)
            order = readings(tokens, batch_size, options.seed)
            for _ in range(checkpoint.step * options.gradient_accumulate_steps):
                next(order)
            # Data types that learn nothing leave everything as it is.
            for step in range(checkpoint.step, options.e2e_iters if any(x.learnt for x in layers.values()) else 0):
                for _ in range(options.gradient_accumulate_steps):
                    loss.backward(next(order))
                steps.take(step, options.e2e_iters)
                on_step()
            after = loss.mean(slice_, "rounded")
        better = after < before
        finished = {name: layer.finished(given[name], better) for name, layer in layers.items()}
    for name, linear in linears.items():
        put_weight(linear, finished[name])
    told = [
        dataclasses.replace(result, layers=tuple(finished[layer.layer.name] for layer in result.layers))
        for result in results
    ]
    return told, Outcome(before, after)


@dataclass
class _Voice:
    """Which of its weights every layer answers with: `original`, `blocks` (as those left it), `rounded` (as learnt)."""

    said: str = "rounded"


class _Layer(TunableLinear):
    """A layer that goes on learning, and can answer as it did before."""

    def __init__(
        self, result: LayerResult, linear: Any, dtype: torch.dtype, device: torch.device, voice: _Voice
    ) -> None:
        latent = result.latent
        assert latent is not None

        def moved(offer: Any) -> Any:
            return offer.to(device) if isinstance(offer, torch.Tensor) else offer

        spec = dataclasses.replace(result.layer, transposed=False)
        fixed = {name: moved(offer) for name, offer in latent.fixed.items()}
        super().__init__(SimpleNamespace(weight=latent.original, bias=linear.bias), spec, dtype, device, fixed)
        if latent.weight is not latent.original:
            self.start_from(moved(latent.weight), self.original)
        if result.layer.static_activations:
            self.take_frozen({name: moved(tensor) for name, tensor in result.frozen.items()})
        self.tuned = latent.bounds
        self.learnt = nn.ParameterDict({name: nn.Parameter(moved(t)) for name, t in latent.learnt.items()})
        self._blocks = moved(result.weight)
        self._voice = voice

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._voice.said == "original":
            return F.linear(x, self.original.to(self.compute_dtype), self.bias)
        if self._voice.said == "blocks" or not self.learnt:
            return self.compute(x, self._blocks)
        return super().forward(x)

    def finished(self, given: LayerResult, better: bool) -> LayerResult:
        """The result as it is now, or as it was given."""
        if not better or not self.learnt:
            return dataclasses.replace(given, latent=None)
        found = self.finish()
        self.check_weight()
        importance = None if given.importance is None else given.importance.to(self.original.device)
        error = None if given.error is None else relative_error(self.original, found.weight, importance)
        return dataclasses.replace(given, codes=found.codes, decoded=found.decoded, error=error, latent=None)


class _Loss:
    """How far the model is from its original on some of the samples."""

    def __init__(self, model: Any, text: RetoldText, voice: _Voice, device: torch.device, at_once: int) -> None:
        """Args:
        text: what is learnt from; its tokens as they are is what is judged by.
        at_once: samples to be run at a time.
        """
        self._model, self._tokens, self._text, self._voice, self._device = model, text.tokens, text, voice, device
        self._at_once = at_once

    def backward(self, batch: Reading) -> None:
        """Add the gradient of the mean over a batch's tokens to what is learnt."""
        count = self._tokens.mask[batch.samples].sum()
        for part in batch.split(self._at_once):
            ids = self._text.read(part)
            with torch.no_grad():
                wanted = self._answer(ids, part.samples, "original", hidden=True)
                self._text.hear(part, wanted.logits)
            with torch.enable_grad():
                found = self._answer(ids, part.samples, "rounded", hidden=True)
                loss = divergence(wanted.logits, found.logits) + HIDDEN * _apart(wanted, found)
                (loss / count).backward()

    @torch.no_grad()
    def mean(self, samples: torch.Tensor, said: str) -> float:
        """Divergence from the original's distributions, in nats."""
        total = 0.0
        for part in samples.split(self._at_once):
            ids = self._tokens.input_ids[part]
            wanted, found = (self._answer(ids, part, which).logits for which in ("original", said))
            total += divergence(wanted, found).item()
        return total / int(self._tokens.mask[samples].sum())

    def _answer(self, ids: torch.Tensor, samples: torch.Tensor, said: str, *, hidden: bool = False) -> _Answer:
        """What the model says with these weights to token ids, which are real where those of some samples are."""
        self._voice.said = said
        ids, mask = ids.to(self._device), self._tokens.mask[samples]
        # Padding is on the right, where no real token sees it.
        real = (slice(None),) if bool(mask.all()) else mask.to(self._device)
        output = self._model(input_ids=ids, use_cache=False, output_hidden_states=hidden)
        states = (output.hidden_states or ())[1:] if hidden else ()
        return _Answer(output.logits[real], tuple(state[real] for state in states))


@dataclass(frozen=True, eq=False)
class _Answer:
    """Attributes:
    logits: of the token after each real one, [..., vocabulary].
    hidden: the state of each real token after each block, [..., features]; none of a model that does not tell.
    """

    logits: torch.Tensor
    hidden: tuple[torch.Tensor, ...]


def _apart(wanted: _Answer, found: _Answer) -> torch.Tensor | float:
    """Sum over tokens of how far hidden states are apart, relative to their squared length, mean over blocks."""
    each = [
        ((g.float() - h.float()).square().sum(-1) / h.float().square().sum(-1).clamp(min=TINY)).sum()
        for h, g in zip(wanted.hidden, found.hidden, strict=True)
    ]
    return sum(each) / len(each) if each else 0.0


class _Steps:
    """Steps everything that is learnt, from where a run was cut off."""

    def __init__(self, layers: Mapping[str, _Layer], text: RetoldText, checkpoint: Checkpoint) -> None:
        self._layers, self._checkpoint, self._saved = layers.values(), checkpoint, time.monotonic()
        self._learnt = {f"{n}.{k}": p for n, layer in layers.items() for k, p in layer.learnt.items()}
        self._sums = {f"{n}.gradient": torch.zeros_like(p) for n, p in self._learnt.items()}
        # What steps change, they change in place.
        self._state: State = {name: p.detach() for name, p in self._learnt.items()} | self._sums
        self._state["text"] = text.drawn
        for name, tensor in checkpoint.state.items():
            self._state[name].copy_(tensor)
        self._slots = [Slot(p, STEP if n.endswith(".v") else SCALE_STEP, 0.0) for n, p in self._learnt.items()]

    def take(self, step: int, of: int) -> None:
        """Number `step` of so many, from 0."""
        for parameter, total in zip(self._learnt.values(), self._sums.values(), strict=True):
            if parameter.grad is not None:
                parameter.grad = total.mul_(MOMENTUM).add_(parameter.grad)
        sign_step(self._slots, 1.0 - step / of)
        for layer in self._layers:
            layer.clamp_learnt()
        if step + 1 == of or time.monotonic() - self._saved > SAVED:
            self._checkpoint.save(step + 1, self._state)
            self._saved = time.monotonic()


@contextmanager
def _computing(model: Any, device: torch.device, dtype: torch.dtype | None) -> Iterator[torch.dtype]:
    """Have the model on a device, in a dtype that it can compute in there; yields that."""
    stored, home = next((p.dtype, p.device) for p in model.parameters() if p.is_floating_point())
    wider = dtype == torch.float32 or (stored == torch.float16 and device.type == "cpu")
    computing = torch.float32 if wider else stored
    if (device, computing) != (home, stored):
        model.to(device, computing)
    try:
        yield computing
    finally:
        if (device, computing) != (home, stored):
            model.to(home, stored)
