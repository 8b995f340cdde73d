# SPDX-License-Identifier: Apache-2.0
"""What layers get wrong by themselves: the number, who counts, and what it does to the tuning."""

import pytest
import torch
from torch import nn

from auto_round.tuning.options import TuningOptions
from auto_round.tuning.own_error import PART, OwnErrors
from auto_round.tuning.signround import Samples, tune_block

from .conftest import layer_of

CPU = torch.device("cpu")


def noted(own, layer, x, moved):
    own.note(layer, x, layer.weight + moved)
    return float(own.take())


def test_the_number_by_hand():
    layer = layer_of(torch.zeros(2, 3))
    own = OwnErrors([layer], scale=10.0)
    x = torch.ones(1, 4, 3)
    # The first error is the unit, whatever it is: with all weights off by 1, each output is off by 3.
    assert noted(own, layer, x, 1.0) == pytest.approx(10.0 * PART)
    assert noted(own, layer, x, 2.0) == pytest.approx(4 * 10.0 * PART)
    assert own.take() == 0.0  # taken


def test_layers_count_alike_and_those_that_did_not_run_not_at_all():
    layers = [layer_of(torch.zeros(2, 3)), layer_of(torch.zeros(4, 3))]
    own = OwnErrors(layers, scale=1.0)
    own.note(layers[0], torch.ones(1, 4, 3), layers[0].weight + 1.0)
    own.note(layers[1], 100 * torch.ones(1, 4, 3), layers[1].weight + 1.0)
    assert float(own.take()) == pytest.approx(PART)
    own.note(layers[1], torch.empty(0, 3), layers[1].weight + 1.0)  # an expert without tokens
    assert own.take() == 0.0


def test_padding_does_not_count():
    layer = layer_of(torch.zeros(2, 3))
    own = OwnErrors([layer], scale=1.0)
    own.mask = torch.tensor([[True, True, False, False]])
    x = torch.ones(1, 4, 3)
    x[:, 2:] = 1e6
    assert noted(own, layer, x, 1.0) == pytest.approx(PART)
    x[:, 2:] = 0.0
    assert noted(own, layer, x, 1.0) == pytest.approx(PART)


def test_inputs_are_not_to_blame():
    """An error must not be lowered by making the layers before it say less."""
    layer, x = layer_of(torch.zeros(2, 3)), torch.ones(1, 4, 3, requires_grad=True)
    own = OwnErrors([layer], scale=1.0)
    moved = torch.ones(2, 3, requires_grad=True)
    own.note(layer, x, layer.weight + moved)
    own.take().backward()
    assert x.grad is None
    assert bool((moved.grad > 0).all())


class Cancelling(nn.Module):
    """Two layers of which only the sum is seen."""

    def __init__(self):
        super().__init__()
        self.one, self.two = layer_of(torch.zeros(2, 3)), layer_of(torch.zeros(2, 3))

    def forward(self, x):
        return self.one(x) + self.two(x)


@pytest.mark.parametrize("recipe", ["published", "best"])
def test_errors_that_cancel_in_a_block_are_seen_by_the_improved_recipe_alone(recipe):
    block = Cancelling()
    layers = [block.one, block.two]
    samples = Samples(torch.ones(8, 4, 3), torch.zeros(8, 4, 2), None, block)

    # What is learnt starts as errors of opposite sign, so that the block is less wrong than its layers.
    def learnable(layer, start):
        layer.make_learnable = lambda _minmax, **_: layer.learnt.update({"v": nn.Parameter(torch.full((2, 3), start))})

    learnable(block.one, 0.5)
    learnable(block.two, -0.3)
    options = TuningOptions(iters=100, lr=0.01, recipe=recipe)
    outcome = tune_block(layers, samples, options, 4, torch.Generator().manual_seed(0), CPU)
    assert outcome.loss_after < 0.01 * outcome.loss_before
    own = max(layer.learnt["v"].detach().abs().max().item() for layer in layers)
    # The block's error alone moves both alike, to 0.4 and -0.4.
    assert own == pytest.approx(0.4, abs=0.02) if recipe == "published" else own < 0.35
    assert block.one.own_errors is None


def test_step_sizes_of_the_improved_recipe():
    published, best = TuningOptions(iters=200), TuningOptions(iters=200, recipe="best")
    assert best.step_size(4) == published.step_size(4) == 1 / 200
    assert best.minmax_step_size(4) == pytest.approx(0.3 / 200)
    assert published.minmax_step_size(4) == 1 / 200
    assert TuningOptions(iters=200, recipe="best", minmax_lr=0.7).minmax_step_size(4) == 0.7
