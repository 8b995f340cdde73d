# SPDX-License-Identifier: Apache-2.0
"""Kernels as they stand against the same ones compiled. Not part of the suite: it takes seconds for each scheme."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from auto_round.data_type import DataType
from auto_round.data_type.kernels import check_compiler, kernels_compiled
from auto_round.errors import UnknownOptionError
from auto_round.schemes import QuantizationScheme
from auto_round.testing.conformance.base import Declared, weight_like

__all__ = ["CompiledTests"]

SUMS = 1e-5
"""How far sums of 256 products in float32 may be apart, relative to the largest, that are added up in another order."""


@pytest.mark.filterwarnings("ignore:::torch")  # its compiler uses what it warns of
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
class CompiledTests(Declared):
    """What `enable_torch_compile` must not change; for data types with kernels marked `compilable`."""

    shapes = ((24, 256), (40, 256))

    @pytest.fixture(autouse=True)
    def _a_compiler(self) -> None:
        try:
            check_compiler(torch.device("cpu"))
        except UnknownOptionError as error:
            pytest.skip(str(error))

    @pytest.mark.parametrize("search", [False, True])
    def test_compiled_weights_and_gradients_are_the_same(
        self, data_type: DataType, scheme: QuantizationScheme, search: bool
    ) -> None:
        """Weights, what is stored of them, and gradients of each by itself, to the last bit."""
        for shape in self.shapes:  # the second one is of other sizes, for which kernels are compiled again
            weight = weight_like(shape, torch.bfloat16)
            outer = weight_like(shape, torch.bfloat16, 1)
            found: list[tuple[torch.Tensor, dict[str, torch.Tensor]]] = []
            stored: list[dict[str, torch.Tensor]] = []
            for compiled in (False, True):
                layer = self.layer(data_type, scheme, weight, search=search)
                layer.make_learnable(minmax=True)
                for name, parameter in layer.learnt.items():
                    with torch.no_grad():
                        noise = torch.rand(parameter.shape, generator=torch.Generator().manual_seed(2))
                        parameter.add_(noise - 0.5 if name == "v" else -noise / 4)
                with kernels_compiled() if compiled else nullcontext():
                    rounded = layer.quantized_weight()
                    gradients = torch.autograd.grad(rounded, list(layer.learnt.values()), outer)
                    codes = layer.finish().codes
                stored.append(dict(codes.tensors) if codes is not None else {})
                found.append((rounded.detach(), dict(zip(layer.learnt, gradients, strict=True))))
            (rounded, gradients_of), (compiled_rounded, compiled_gradients) = found
            for name, tensor in stored[0].items():
                same = torch.equal(stored[1][name].view(torch.uint8), tensor.view(torch.uint8))
                assert same, f"compiled, the {name} of its codes are others."
            assert torch.equal(compiled_rounded, rounded), "compiled, weights are rounded otherwise."
            for name, gradient in gradients_of.items():
                close = 0.0 if name == "v" else SUMS * gradient.abs().max().item()
                apart = (compiled_gradients[name] - gradient).abs().max().item()
                assert apart <= close, f"compiled, the gradient of {name} is another one, by {apart:.2g}."

    def test_compiled_inputs_are_the_same(self, data_type: DataType, scheme: QuantizationScheme) -> None:
        """As activations are rounded, and with the gradient that goes through."""
        offers = {"bits": scheme.bits, "group_size": scheme.group_size}
        named = {name: value for name, value in offers.items() if name in data_type.offers}
        for shape in self.shapes:
            found = []
            for compiled in (False, True):
                x = weight_like(shape, torch.bfloat16).requires_grad_()
                with kernels_compiled() if compiled else nullcontext():
                    rounded = data_type.quant_tensor(x, **named)[0]
                    found.append((rounded, *torch.autograd.grad(rounded, x, weight_like(shape, torch.bfloat16, 1))))
            for plain, other in zip(*found, strict=True):
                assert torch.equal(plain, other), "compiled, an input or its gradient is another one."
