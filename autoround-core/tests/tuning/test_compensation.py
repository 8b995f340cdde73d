# SPDX-License-Identifier: Apache-2.0
"""Rounding with error compensation: the numbers, by solving for the rest each time; when not; what it is worth."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForCausalLM

from auto_round import AutoRound
from auto_round.tuning.compensation import DAMPING, Inputs, compensate
from auto_round.tuning.gram import stages

from .conftest import layer_of


def steps_of_one(tensor, v=0.0):
    """Whole numbers."""
    return torch.round(tensor + v), None, None


def steps_by_range(tensor):
    """Three steps to the largest magnitude of a row."""
    scale = tensor.abs().amax(-1, keepdim=True) / 3
    return torch.round(tensor / scale) * scale, None, None


def steps_in_fours(tensor):
    """Whole numbers, in blocks of four and no others."""
    if tensor.shape[-1] % 4:
        raise ValueError("no whole number of blocks")
    return torch.round(tensor), None, None


def inputs_of(x, z=None):
    """What is collected of inputs [tokens, in_features], and of those of the original model."""
    return Inputs(x.T @ x, None if z is None else (z - x).T @ x, len(x))


def correlated(tokens, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, width, generator=generator) @ torch.randn(width, width, generator=generator)


def test_each_column_is_what_least_squares_makes_of_it_once_those_before_are_rounded():
    x, weight = correlated(200, 12), 3 * torch.randn(5, 12, generator=torch.Generator().manual_seed(1))
    layer = layer_of(weight, steps_of_one)
    assert compensate(layer, inputs_of(x))
    gram = (x.T @ x).double()
    gram.diagonal().add_(DAMPING * gram.diagonal().mean())
    order = gram.diagonal().argsort(descending=True).tolist()
    wanted, expected = weight.double(), weight.double().clone()
    rounded = wanted.clone()
    for n, column in enumerate(order):
        done, rest = order[:n], order[n:]
        # argmin over the rest of |(rounded - wanted) X|^2: H[rest, rest] change = -H[rest, done] error
        error = (rounded - wanted)[:, done].T
        change = torch.linalg.solve(gram[rest][:, rest], -gram[rest][:, done] @ error).T
        expected[:, column] = wanted[:, column] + change[:, 0]
        rounded[:, column] = expected[:, column].round()
    assert torch.equal(layer.quantized_weight().double(), rounded)
    # float32 sums of a dozen numbers below 30
    assert torch.allclose(layer.weight.double(), expected, atol=1e-3)
    assert torch.equal(layer.original, weight)


def test_what_earlier_layers_got_wrong_is_made_up_for():
    x = correlated(400, 8)
    weight = 100 * torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    layer = layer_of(weight, steps_of_one)
    assert compensate(layer, inputs_of(x, z=x / 2))
    answers, wanted = F.linear(x, layer.quantized_weight()), F.linear(x / 2, weight)
    # Damping leaves a few percent of what there is to do; without the second sum all of it would be left.
    assert (answers - wanted).norm() < 0.05 * wanted.norm()
    assert (F.linear(x, layer.wanted) - wanted).norm() < 0.05 * wanted.norm()  # what tuning would go on from


@pytest.mark.parametrize(
    ("function", "tokens"),
    [
        pytest.param(steps_by_range, 200, id="scales depend on the weight"),
        pytest.param(steps_in_fours, 200, id="columns are refused"),
        pytest.param(steps_of_one, 11, id="few tokens"),
    ],
)
def test_left_as_it_is(function, tokens):
    weight = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))
    layer = layer_of(weight, function)
    assert not compensate(layer, inputs_of(correlated(tokens, 12)))
    assert layer.weight is layer.original


def test_never_worse_over_the_tokens_that_were_seen():
    """A weight that is on the grid already cannot gain."""
    layer = layer_of(torch.arange(12.0).reshape(2, 6), steps_of_one)
    assert not compensate(layer, inputs_of(correlated(50, 6)))


def test_an_input_that_is_always_zero():
    x = correlated(50, 6)
    x[:, 2] = 0
    layer = layer_of(3 * torch.randn(2, 6, generator=torch.Generator().manual_seed(1)), steps_of_one)
    assert compensate(layer, inputs_of(x))
    assert bool(torch.isfinite(layer.quantized_weight()).all())


class Block(nn.Module):
    """Two layers with one input, then experts of one kind of which one is used."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.o = (nn.Linear(4, 4) for _ in range(3))
        self.experts = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(4, 4), "down": nn.Linear(4, 4)}) for _ in range(2))

    def forward(self, x):
        x = self.o(self.q(x) + self.k(x))
        return self.experts[1]["down"](self.experts[1]["up"](x[:, :2]))


def test_stages():
    block = Block()
    linears = {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}
    found = stages(linears, lambda: block(torch.ones(1, 3, 4)))
    assert found == [["q", "k"], ["o"], ["experts.0.up", "experts.1.up"], ["experts.0.down", "experts.1.down"]]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3_moe"])
def test_a_model_answers_better(stored, registry, architecture):
    calibration = torch.randint(4, 250, (16, 32), generator=torch.Generator().manual_seed(1))
    other = torch.randint(4, 250, (8, 32), generator=torch.Generator().manual_seed(2))
    original = AutoModelForCausalLM.from_pretrained(stored(architecture), dtype=torch.float32)

    def divergence(**options):
        job = AutoRound(
            stored(architecture), scheme="STEPS4", bits=3, dataset=calibration, registry=registry, iters=0,
            batch_size=4, nsamples=16, seqlen=32, verbose=False, **options,
        )  # fmt: skip
        model, _ = job.quantize()
        with torch.no_grad():
            ours, theirs = (torch.log_softmax(m(other).logits.float(), -1) for m in (model, original))
        return F.kl_div(ours, theirs, reduction="batchmean", log_target=True).item()

    assert divergence(recipe="best") < 0.8 * divergence(recipe="published")
