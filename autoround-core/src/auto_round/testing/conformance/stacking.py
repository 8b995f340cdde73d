# SPDX-License-Identifier: Apache-2.0
"""What `DataType.stacks` promises: matrices on top of each other are quantized as each by itself, bit for bit."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch

from auto_round.data_type import DataType
from auto_round.schemes import QuantizationScheme
from auto_round.testing.conformance.base import Declared, weight_like
from auto_round.tuning.layer import TunableLinear
from auto_round.tuning.stack import LayerStack

__all__ = ["StackingTests"]


class StackingTests(Declared):
    """Layers in a stack against layers that stand alone; skipped for a data type that does not say that it stacks."""

    together: ClassVar[int] = 3

    @pytest.mark.parametrize("search", [False, True])
    def test_stacked_layers_are_those_that_stand_alone(
        self, data_type: DataType, scheme: QuantizationScheme, shape: tuple[int, int], search: bool
    ) -> None:
        self._compare(data_type, scheme, shape, torch.float32, search=search)

    def test_stacked_layers_of_many_weights(self, data_type: DataType, scheme: QuantizationScheme) -> None:
        """More than any cache holds, so that work in chunks cuts through layers."""
        self._compare(data_type, scheme, (384, 1280), torch.bfloat16, search=False)

    def _compare(
        self,
        data_type: DataType,
        scheme: QuantizationScheme,
        shape: tuple[int, int],
        dtype: torch.dtype,
        *,
        search: bool,
    ) -> None:
        if not data_type.stacks(scheme.resolved(), shape):
            pytest.skip("declared: stacks() is false")
        weights = [weight_like(shape, dtype, seed) * (1 + seed) for seed in range(self.together)]
        alone, stack = ([self.layer(data_type, scheme, w.clone(), search=search) for w in weights] for _ in range(2))
        joined = LayerStack(stack)
        for seed, layer in enumerate(alone):
            _learn(layer, seed)
        joined.make_learnable(minmax=True)
        for name, parameter in joined.learnt.items():
            with torch.no_grad():
                parameter.copy_(torch.cat([layer.learnt[name].detach() for layer in alone]))
        # The last layer has no gradient, as an expert has that no token of a batch was sent to.
        outer = [weight_like(shape, dtype, 10 + seed) for seed in range(self.together - 1)]
        outer.append(torch.zeros(shape, dtype=dtype))
        whole = joined.quantized_weight()
        parts = [layer.quantized_weight() for layer in alone]
        assert torch.equal(whole, torch.cat(parts)), "stacks() is true, and stacked weights differ."
        if joined.learnt:
            whole.backward(torch.cat(outer))
            for part, gradient in zip(parts, outer, strict=True):
                part.backward(gradient)
        for name, parameter in joined.learnt.items():
            assert parameter.grad is not None, f"{name} gets no gradient in a stack."
            same = torch.equal(parameter.grad, torch.cat([_gradient(layer, name) for layer in alone]))
            assert same, f"stacks() is true, and the gradients of {name} differ."
        joined.hand_back()
        for layer, other in zip(stack, alone, strict=True):
            found, wanted = layer.finish(), other.finish()
            assert torch.equal(found.weight, wanted.weight), "a layer that leaves a stack is encoded to another weight."


def _learn(layer: TunableLinear, seed: int) -> None:
    """Parameters somewhere within their bounds, other ones for each layer."""
    layer.make_learnable(minmax=True)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in layer.learnt.items():
            noise = torch.rand(parameter.shape, generator=generator)
            parameter.copy_(noise - 0.5 if name == "v" else 1.0 - 0.3 * noise)
        layer.clamp_learnt()


def _gradient(layer: TunableLinear, name: str) -> torch.Tensor:
    gradient = layer.learnt[name].grad
    assert gradient is not None, f"{name} is declared as tuned and gets no gradient."
    return gradient
