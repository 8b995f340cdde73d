# SPDX-License-Identifier: Apache-2.0
"""The step, the order of samples, the choice of parameters."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from auto_round.errors import UnknownOptionError
from auto_round.tuning import signround
from auto_round.tuning.options import TuningOptions
from auto_round.tuning.signround import Samples, _looks, batches, tune_block

from .conftest import layer_of

CPU = torch.device("cpu")


def test_step_sizes_are_the_published_ones():
    assert TuningOptions(iters=200).step_size(4) == 1 / 200
    assert TuningOptions(iters=200).step_size(2) == 1 / 200
    assert TuningOptions(iters=1000).step_size(3) == 2 / 1000
    assert TuningOptions(iters=1000).step_size(4) == 1 / 1000
    assert TuningOptions(iters=1000, lr=0.5).step_size(2) == 0.5
    assert TuningOptions(iters=10, minmax_lr=0.3).minmax_step_size(4) == 0.3
    assert TuningOptions(iters=10, lr=0.3).minmax_step_size(4) == 0.3


@pytest.mark.parametrize(
    "bad", [{"iters": -1}, {"batch_size": 0}, {"iters": 1.5}, {"lr": 0}, {"lr": -1.0}, {"iters": True}]
)
def test_options_that_mean_nothing(bad):
    with pytest.raises(UnknownOptionError):
        TuningOptions(**bad)


def test_every_sample_is_seen_once_before_any_is_seen_twice():
    order = batches(10, 4, torch.Generator().manual_seed(0))
    for _ in range(3):
        seen = torch.cat([next(order), next(order)])
        assert len(set(seen.tolist())) == 8


def test_the_last_step_is_always_looked_at():
    assert max(_looks(200)) == 200
    assert _looks(1) == {1}


def run(targets, options, mask=None, rival=None, trust=1.0):
    layer = layer_of(torch.zeros(2, 3))
    if rival is not None:
        layer.start_from(torch.full((2, 3), 7.0), layer.weight)
        layer.keep()
        layer.start_from(layer.original, layer.original)
    inputs = torch.ones(8, 4, 3)
    samples = Samples(inputs, targets, mask, layer)
    generator = torch.Generator().manual_seed(0)
    outcome = tune_block([layer], samples, options, 4, generator, CPU, rival=rival, trust=trust)
    return layer, outcome


def test_a_step_is_the_sign_times_a_size_that_falls_linearly_to_zero():
    layer, outcome = run(torch.full((8, 4, 2), 100.0), TuningOptions(iters=4, lr=0.1))
    # Always upwards: 0.1 * (1 + 3/4 + 2/4 + 1/4)
    torch.testing.assert_close(layer.learnt["v"].detach(), torch.full((2, 3), 0.25))
    assert outcome.kept_step == 4
    assert outcome.loss_after < outcome.loss_before


def test_parameters_that_hurt_are_not_kept():
    layer, outcome = run(torch.zeros(8, 4, 2), TuningOptions(iters=3, lr=0.7))
    # At zero already; the sign of a zero gradient is zero, so nothing may move.
    assert torch.equal(layer.learnt["v"].detach(), torch.zeros(2, 3))
    assert outcome.loss_after == outcome.loss_before == 0.0

    layer, outcome = run(torch.full((8, 4, 2), 1e-4), TuningOptions(iters=1, lr=5.0))
    assert outcome.kept_step == 0  # one step of 5 overshoots by far
    assert torch.equal(layer.learnt["v"].detach(), torch.zeros(2, 3))


def test_masked_tokens_do_not_count():
    mask = torch.ones(8, 4, dtype=torch.bool)
    mask[:, 2:] = False
    targets = torch.full((8, 4, 2), 1.0)
    targets[:, 2:] = -1e6
    layer, outcome = run(targets, TuningOptions(iters=4, lr=0.1), mask)
    assert (layer.learnt["v"] > 0).all()
    assert outcome.loss_before == pytest.approx(1.0)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradients_are_used_as_they_come(monkeypatch, accumulate):
    """One layer's at a time, where nothing has to be added to them; and the result is that of a step after all."""
    layers = [layer_of(torch.full((3, 3), 0.1 * (n + 1))) for n in range(4)]
    alive = []
    original = signround.sign_step

    def count(slots, factor):
        alive.append(sum(p.grad is not None for layer in layers for p in layer.parameters()))
        original(slots, factor)

    monkeypatch.setattr(signround, "sign_step", count)
    inputs = torch.randn(8, 4, 3, generator=torch.Generator().manual_seed(0))
    samples = Samples(inputs, inputs.flip(-1), None, nn.Sequential(*layers))
    options = TuningOptions(iters=3, lr=0.1, gradient_accumulate_steps=accumulate)

    def tune():
        outcome = tune_block(layers, samples, options, 4, torch.Generator().manual_seed(0), CPU)
        return outcome, [layer.learnt["v"].detach().clone() for layer in layers]

    outcome, learnt = tune()
    # Of each step there is one call for each layer, and one for what is left over.
    assert alive == ([1, 1, 1, 1, 0] * 3 if accumulate == 1 else [4] * 3)
    monkeypatch.setattr(signround, "_stepping", lambda *_: nullcontext())
    after_all = tune()
    assert outcome == after_all[0]
    assert outcome.kept_step > 0
    assert all(torch.equal(one, other) for one, other in zip(learnt, after_all[1], strict=True))


def test_no_copy_is_kept_of_where_it_began():
    layer, outcome = run(torch.full((8, 4, 2), 1e-4), TuningOptions(iters=1, lr=5.0))
    assert (outcome.kept_step, layer._kept) == (0, None)
    assert torch.equal(layer.finish().weight, torch.zeros(2, 3))


def test_what_is_kept_is_what_the_best_step_gave():
    """The second step overshoots; the layer goes on learning and finishes with what it had after the first."""
    targets = torch.full((8, 4, 2), 0.36)  # three inputs of 1: v = 0.12
    layer, outcome = run(targets, TuningOptions(iters=2, lr=0.1))
    assert outcome.kept_step == 1
    torch.testing.assert_close(layer.finish().weight, torch.full((2, 3), 0.1))
    torch.testing.assert_close(layer.learnt["v"].detach(), torch.full((2, 3), 0.15))


def test_what_is_kept_does_not_change_with_what_is_learnt():
    """Were a data type to store what is learnt as it is, the next step must not be felt."""
    layer = layer_of(torch.zeros(2, 3))
    layer.make_learnable(True)
    layer.data_type._function = lambda tensor, v=0.0: (v.view(2, 3), None, None)
    layer.keep()
    with torch.no_grad():
        layer.learnt["v"].add_(1)
    assert torch.equal(layer.finish().weight, torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("rival", "trust", "lr", "weight", "step"),
    [
        (1e-9, 1.0, 0.1, 7.0, 0),  # nothing is better than the rival
        (1.0, 1.0, 0.1, 0.1, 1),  # a step is: 0.0036
        (0.002, 1.0, 0.1, 7.0, 0),  # it is not
        (0.002, 0.5, 0.1, 0.1, 1),  # but it is less than twice the rival's
        (0.001, 0.5, 0.1, 7.0, 0),
        (1.0, 1.0, 5.0, 0.0, 0),  # steps of 5 overshoot, and plain rounding is better
    ],
)
def test_what_is_kept_already_stays_unless_something_is_better(rival, trust, lr, weight, step):
    layer, outcome = run(torch.full((8, 4, 2), 0.36), TuningOptions(iters=2, lr=lr), rival=rival, trust=trust)
    assert torch.equal(layer.finish().weight, torch.full((2, 3), weight))
    assert outcome.kept_step == step
    assert outcome.loss_before == pytest.approx(0.36**2)
    assert outcome.loss_after == (rival if weight == 7.0 else pytest.approx((0.36 - 3 * weight) ** 2))


def test_compensation_is_trusted_less_at_two_bits():
    assert [TuningOptions(recipe="best").trust(bits) for bits in (2, 3, 4)] == [0.6, 1.0, 1.0]
