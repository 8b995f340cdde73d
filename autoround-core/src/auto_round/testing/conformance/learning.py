# SPDX-License-Identifier: Apache-2.0
"""What the tuner needs: gradients that are there, finite and lead downhill, and searches that never lose."""

from __future__ import annotations

import pytest
import torch

from auto_round.data_type import DataType
from auto_round.schemes import QuantizationScheme
from auto_round.testing.conformance.base import Declared, weight_like

__all__ = ["LearningTests"]

STEPS = 60


class LearningTests(Declared):
    """A data type under the tuner."""

    @pytest.mark.parametrize("search", [False, True])
    def test_gradients_reach_what_is_learnt(
        self, data_type: DataType, scheme: QuantizationScheme, search: bool
    ) -> None:
        layer = self.layer(data_type, scheme, weight_like(self.shapes[0]), search=search)
        layer.make_learnable(minmax=True)
        if not layer.learnt:
            pytest.skip("declared: nothing is learnt (tuned is empty)")
        target = torch.randn(self.shapes[0], generator=torch.Generator().manual_seed(1))
        (layer.quantized_weight().float() * target).sum().backward()
        for name, parameter in layer.learnt.items():
            assert parameter.grad is not None, f"{name} is declared as tuned and gets no gradient."
            assert bool(torch.isfinite(parameter.grad).all()), f"the gradient of {name} must be finite."
        moved = {name for name, p in layer.learnt.items() if p.grad is not None and bool((p.grad != 0).any())}
        assert "v" in moved or "v" not in layer.learnt, "v is declared as tuned and its gradient is zero everywhere."
        # Of the two ends of a range one may count and the other not.
        ends = layer.learnt.keys() - {"v"}
        assert moved & ends or not ends, f"{', '.join(ends)}: declared as tuned, and the gradient is zero everywhere."

    @pytest.mark.parametrize("search", [False, True])
    def test_tuning_lowers_the_error_of_an_output(
        self, data_type: DataType, scheme: QuantizationScheme, search: bool
    ) -> None:
        """Signed steps on `v` make `x q(w)` come closer to `x w` than rounding does; that is what it is all for."""
        if not self.offsets_matter:
            pytest.skip("declared: offsets_matter = False")
        shape = self.shapes[0]
        weight = weight_like(shape)
        layer = self.layer(data_type, scheme, weight, search=search)
        layer.make_learnable(minmax=False)
        if "v" not in layer.learnt:
            pytest.skip("declared: v is not learnt")
        # Inputs that are alike, as those of models are: on independent ones nothing beats rounding to the nearest.
        generator = torch.Generator().manual_seed(2)
        x = torch.randn(64, 8, generator=generator) @ torch.randn(8, shape[1], generator=generator)

        def loss() -> torch.Tensor:
            return (x @ (layer.quantized_weight().float() - weight).T).square().mean()

        with torch.no_grad():
            before = float(loss())
        best = before
        for step in range(STEPS):
            loss().backward()
            with torch.no_grad():
                v = layer.learnt["v"]
                assert v.grad is not None
                v.sub_(v.grad.sign(), alpha=(1 - step / STEPS) / STEPS)
                v.grad = None
                layer.clamp_learnt()
                best = min(best, float(loss()))
        if before > 1e-9 * float((x @ weight.T).square().mean()):
            assert best < before, "the gradients of v lead nowhere: is the straight-through estimator's sign right?"

    def test_the_search_never_loses(
        self, data_type: DataType, scheme: QuantizationScheme, scale_dtype: torch.dtype | None
    ) -> None:
        if not data_type.searches:
            pytest.skip("declared: searches = False")
        weight = weight_like(self.shapes[0])
        plain = self.layer(data_type, scheme, weight, scale_dtype=scale_dtype).quantized_weight()
        found = self.layer(data_type, scheme, weight, scale_dtype=scale_dtype, search=True).quantized_weight()
        importance = torch.linspace(0.5, 2.0, weight.shape[1])
        before, after = ((importance * (q.detach() - weight).square()).sum() for q in (plain, found))
        told = f"the search made the weighted error {after / before:.3f} times as large."
        assert after <= before * self.search_may_lose, told
