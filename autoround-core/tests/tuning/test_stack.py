# SPDX-License-Identifier: Apache-2.0
"""Stacks of experts: few calls, no copies, and the bits of layers that are tuned one by one."""

import pytest
import torch
from torch import nn

from auto_round.plan import LayerSpec
from auto_round.schemes import QuantizationScheme
from auto_round.tuning.layer import TunableLinear
from auto_round.tuning.stack import LayerStack, renewed, stacked

from .conftest import tune

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
SCHEME = QuantizationScheme(bits=4, group_size=32, data_type="steps").resolved()


@pytest.fixture
def steps(registry):
    return registry.data_type("steps")


def make_layers(data_type, weights, names=None):
    layers = []
    for n, weight in enumerate(weights):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        linear.weight = nn.Parameter(weight, requires_grad=False)
        name = names[n] if names else f"b.experts.{n}.up"
        spec = LayerSpec(name, tuple(weight.shape), weight.dtype, "b", False, False, SCHEME, data_type)
        layers.append(TunableLinear(linear, spec, weight.dtype, CPU))
    return layers


@pytest.fixture
def calls(steps, monkeypatch):
    """Shapes of the weights that the data type was called with."""
    seen, original = [], type(steps).quant_tensor

    def listen(self, tensor, **offers):
        seen.append(tuple(tensor.shape))
        return original(self, tensor, **offers)

    # Core looks at the signature to know what to offer; it was read when the data type was registered.
    monkeypatch.setattr(type(steps), "offers", steps.offers)
    monkeypatch.setattr(type(steps), "quant_tensor", listen)
    return seen


@pytest.mark.parametrize("options", [{}, {"group_size": -1}, {"disable_opt_rtn": True}, {"act_bits": 8, "act_data_type":
                                     "steps", "act_group_size": -1}])  # fmt: skip
@pytest.mark.parametrize("architecture", ["llama", "qwen3_moe", "mixtral", "gpt_oss", "deepseek"])
def test_bits_are_those_of_single_layers(architecture, stored, registry, tokens, monkeypatch, calls, options):
    monkeypatch.setattr("auto_round.tuning.block.SCARCE", 4)
    together, job = tune(stored(architecture), registry, tokens, **options)
    few = len(calls)
    assert any(block.kept_step for block in job.report.blocks)  # were nothing learnt, everything would be equal
    calls.clear()
    monkeypatch.setattr(type(registry.data_type("steps")), "stacks", lambda *_: False)
    alone, _ = tune(stored(architecture), registry, tokens, **options)
    assert len(calls) > few
    assert together.keys() == alone.keys()
    assert [name for name in alone if not torch.equal(alone[name], together[name])] == []


def test_gradients_of_several_passes_add_up(stored, registry, tokens, monkeypatch):
    monkeypatch.setattr("auto_round.tuning.block.SCARCE", 4)
    together, _ = tune(stored("qwen3_moe"), registry, tokens, gradient_accumulate_steps=3)
    monkeypatch.setattr(type(registry.data_type("steps")), "stacks", lambda *_: False)
    alone, _ = tune(stored("qwen3_moe"), registry, tokens, gradient_accumulate_steps=3)
    assert all(torch.equal(alone[name], together[name]) for name in alone)


def test_experts_that_see_few_tokens_stay_outside(stored, registry, tokens, monkeypatch):
    made = []
    original = LayerStack.__init__
    monkeypatch.setattr(LayerStack, "__init__", lambda self, layers: (made.append(layers), original(self, layers))[1])
    _, job = tune(stored("qwen3_moe"), registry, tokens)
    scarce = {name for block in job.report.blocks for name in block.scarce}
    assert scarce
    assert made
    assert not scarce & {layer.layer.name for layers in made for layer in layers}


def test_one_call_for_each_pass(steps, calls):
    layers = make_layers(steps, torch.randn(3, 4, 32).unbind())
    units = stacked(layers, "b")
    (stack,) = units
    stack.make_learnable(minmax=True)
    block = nn.ModuleList(layers)
    block.forward = lambda x: sum(layer(x) for layer in layers)
    x = torch.randn(2, 32)
    with renewed(block, units):
        for _ in range(2):
            before = block(x)
            before.sum().backward()  # a second time through one graph would be an error
            with torch.no_grad():
                stack.learnt["v"].add_(0.3)
            assert not torch.equal(block(x), before)
    assert calls == [(12, 32)] * 4
    for number, layer in enumerate(layers):
        assert torch.equal(layer.learnt["v"], stack.learnt["v"].chunk(3)[number])
        layer.quantized_weight()
    assert calls[4:] == [(4, 32)] * 3


def test_nothing_is_copied_where_weights_lie_in_one_tensor(steps):
    fused = torch.randn(3, 8, 32)
    halves = [half for expert in fused for half in (expert[:4], expert[4:])]
    (stack,) = stacked(make_layers(steps, halves), "b")
    assert stack.weight.data_ptr() == fused.data_ptr()
    assert torch.equal(stack.weight, fused.view(24, 32))
    # Apart, or turned: one copy, which the layers then look at too.
    for weights in ([torch.randn(4, 32) for _ in range(3)], torch.randn(3, 32, 4).transpose(1, 2).unbind()):
        layers = make_layers(steps, weights)
        (stack,) = stacked(layers, "b")
        assert torch.equal(stack.weight, torch.cat(list(weights)))
        assert {layer.weight.untyped_storage().data_ptr() for layer in layers} == {
            stack.weight.untyped_storage().data_ptr()
        }


def test_what_is_stacked(steps, monkeypatch):
    names = ["b.q", "b.experts.0.up", "b.experts.0.gate", "b.experts.1.up", "b.shared.up", "b.experts.1.down"]
    weights = [torch.randn(4, 32) for _ in names]
    weights[-1] = torch.randn(4, 64)

    def units(count=99):
        monkeypatch.setattr("auto_round.tuning.stack.LARGEST", count * 4 * 32)
        found = stacked(make_layers(steps, weights, names), "b")
        return [tuple(unit.layer.shape) for unit in found]

    assert units() == [(20, 32), (4, 64)]
    assert units(2) == [(8, 32), (8, 32), (4, 32), (4, 64)]
    assert units(0) == [(4, 32)] * 5 + [(4, 64)]
    # Large ones only where they are numbered within the block, whose own number is none.
    monkeypatch.setattr("auto_round.tuning.stack.SMALL", 4 * 32 - 1)
    assert units() == [(4, 32), (12, 32), (4, 32), (4, 64)]
    monkeypatch.setattr(type(steps), "share", lambda *_: {"global_scale": torch.ones(1)})
    layers = make_layers(steps, weights, names)
    for layer in layers:
        layer.share_with([layer])
    assert stacked(layers, "b") == layers


def test_layers_of_different_height(steps):
    weights = [torch.randn(rows, 64) for rows in (4, 12, 8)]
    layers = make_layers(steps, weights)
    alone = make_layers(steps, weights)
    units = stacked(layers, "b")
    (stack,) = units
    stack.make_learnable(minmax=True)
    with torch.no_grad():
        for parameter in stack.learnt.values():
            parameter.copy_(torch.rand_like(parameter))
    stack.hand_back()
    for layer, other, weight in zip(layers, alone, weights, strict=True):
        assert torch.equal(layer.weight, weight)
        other.stand_alone(layer.learnt)
        assert torch.equal(layer.quantized_weight(), other.quantized_weight())
    assert torch.equal(torch.cat([layer.quantized_weight() for layer in layers]), stack.quantized_weight())


def test_large_layers_have_no_stack(stored, registry, tokens, monkeypatch):
    monkeypatch.setattr("auto_round.tuning.stack.SMALL", 0)
    monkeypatch.setattr(LayerStack, "__init__", lambda *_: pytest.fail("a stack was made"))
    tune(stored("llama"), registry, tokens)
