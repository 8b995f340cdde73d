# SPDX-License-Identifier: Apache-2.0
"""Rounding again in the backward pass: less is kept, and every bit comes out the same."""

import pytest
import torch

from auto_round.errors import UnknownOptionError
from auto_round.tuning import thrifty
from auto_round.tuning.options import TuningOptions

from .conftest import layer_of, tune


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(thrifty, "WEIGHTS", 0)
    monkeypatch.setattr(thrifty, "TALL", 8)


@pytest.fixture
def steps_layer(registry):
    return lambda weight: layer_of(weight, data_type=registry.data_type("steps"), group_size=32)


def losses(job):
    return [block.loss_after for block in job.report.blocks]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"gradient_accumulate_steps": 2}, {"act_bits": 8, "act_data_type": "steps"}])
@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gpt2"])
def test_the_same_bits_come_out(small_pieces, stored, registry, tokens, family, options):
    weights, job = tune(stored(family), registry, tokens, **options)
    again, thrifty_job = tune(stored(family), registry, tokens, low_memory=True, **options)
    assert losses(thrifty_job) == losses(job)
    assert all(torch.equal(again[name], weight) for name, weight in weights.items())


def test_pieces_share_memory_with_what_the_layer_learns(small_pieces, steps_layer):
    layer = steps_layer(torch.randn(20, 32))
    layer.make_learnable(minmax=True, thrifty=True)
    assert [piece.rows for piece in layer.pieces] == [slice(0, 8), slice(8, 16), slice(16, 20)]
    layer.pieces[1].learnt["v"].data.fill_(0.25)
    assert torch.equal(layer.learnt["v"].reshape(20, 32)[8:16], torch.full((8, 32), 0.25))
    assert not layer.learnt["v"][:8].any()


def test_a_data_type_that_does_not_stack_is_not_cut(small_pieces, steps_layer, monkeypatch):
    layer = steps_layer(torch.randn(20, 32))
    monkeypatch.setattr(type(layer.data_type), "stacks", lambda *_: False)
    layer.make_learnable(minmax=True, thrifty=True)
    assert [piece.rows for piece in layer.pieces] == [slice(0, 20)]


def test_nothing_of_the_weights_size_is_kept_between_the_passes(steps_layer):
    layer = steps_layer(torch.randn(64, 32))
    sizes = []
    for is_thrifty in (False, True):
        layer.make_learnable(minmax=True, thrifty=is_thrifty)
        sizes.append(0)

        def note(tensor, sizes=sizes):
            sizes[-1] = max(sizes[-1], tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            answer = layer(torch.randn(3, 32))
        answer.sum().backward()
    assert sizes[0] >= 64 * 32
    assert sizes[1] <= 3 * 32


def test_the_improved_recipe_says_that_it_cannot():
    with pytest.raises(UnknownOptionError, match="low_memory is for recipe published"):
        TuningOptions(recipe="best", low_memory=True)
