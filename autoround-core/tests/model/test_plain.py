# SPDX-License-Identifier: Apache-2.0
"""Layers that look like linear ones and are none."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, Llama4TextConfig, PhimoeConfig
from transformers.pytorch_utils import Conv1D

from auto_round.model.plain import computes_as_linear
from auto_round.model.structure import find_structure


class WrittenDown(nn.Linear):
    """As Falcon does it."""

    def forward(self, x):
        product = x @ self.weight.T
        return product if self.bias is None else product + self.bias


class Scaled(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


class Chooses(nn.Linear):
    def forward(self, x):
        return torch.topk(super().forward(x), 2)


class Broken(nn.Linear):
    def forward(self, x):
        raise RuntimeError


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "linear"),
    [(nn.Linear, True), (WrittenDown, True), (Scaled, False), (Chooses, False), (Broken, False)],
)
def test_what_a_class_computes_decides(kind, linear, device, dtype):
    layers = [kind(24, 40, bias=bias, device=device, dtype=dtype) for bias in (True, False)]
    before = [dict(layer.named_parameters()) for layer in layers]
    torch.set_default_dtype(dtype)  # as while transformers builds a model
    try:
        assert [computes_as_linear(layer) for layer in layers] == [linear, linear]
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(p is layer.get_parameter(n) for layer, own in zip(layers, before, strict=True) for n, p in own.items())


def test_a_transposed_layer_is_linear():
    class Own(Conv1D):
        def forward(self, x):
            return x @ self.weight + self.bias

    assert computes_as_linear(Conv1D(40, 24))
    assert computes_as_linear(Own(40, 24))


@pytest.mark.parametrize(
    ("config", "router"),
    [
        (PhimoeConfig(num_local_experts=4), "PhimoeTopKRouter"),
        (Llama4TextConfig(num_local_experts=4, head_dim=16, intermediate_size_mlp=64), "Llama4Router"),
    ],
)
def test_routers_are_told_apart(config, router):
    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
    for name, value in {**sizes, "num_attention_heads": 4, "num_key_value_heads": 2}.items():
        setattr(config, name, value)
    config.layer_types = None if not getattr(config, "layer_types", None) else config.layer_types[:2]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    found = {info.own_forward for info in find_structure(model).linears if info.name.endswith("router")}
    assert found == {router}
    assert all(info.own_forward is None for info in find_structure(model).linears if "router" not in info.name)
