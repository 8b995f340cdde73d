# SPDX-License-Identifier: Apache-2.0
"""What the tuner needs: gradients that are there, finite and lead downhill, and searches that never lose."""

from __future__ import annotations

import pytest
import torch

from auto_round.data_type import DataType
from auto_round.schemes import QuantizationScheme
from auto_round.testing.conformance.base import Declared, weight_like
from auto_round.tuning.layer import TunableLinear

__all__ = ["LearningTests"]

STEPS = 60

OFFSETS = 64
"""Offsets that one average is taken over."""

DELTA = 0.05
"""Half the width of a finite difference, in units of what is learnt."""

POINTS = 4
"""Places within that width where the gradient is taken."""

CUT = 0.7
"""Where ends of ranges are held: the outliers beyond are cut off, and nothing else comes near."""


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

    @torch.no_grad()
    def test_without_an_offset_rounding_is_to_the_nearest(
        self, data_type: DataType, scheme: QuantizationScheme
    ) -> None:
        """Offsets of a quarter of a step either way lead away from the weight, and not towards it."""
        layer = self.layer(data_type, scheme, weight_like(self.shapes[0]))
        layer.make_learnable(minmax=True)
        if "v" not in layer.learnt:
            pytest.skip("declared: v is not learnt")
        errors = {}
        for offset in (0.0, -0.25, 0.25):
            layer.learnt["v"].fill_(offset)
            errors[offset] = (layer.quantized_weight().float() - layer.weight.float()).square().sum().item()
        best = min(errors, key=lambda offset: errors[offset])
        # Sums of the same numbers in float32, where nothing depends on the offset.
        told = f"with v = 0 a weight must be rounded to the nearest value, and with v = {best} it comes nearer."
        assert errors[0.0] <= errors[best] * (1 + 1e-6), told

    def test_gradients_agree_with_finite_differences(self, data_type: DataType, scheme: QuantizationScheme) -> None:
        """Where rounding is averaged out, the weight is a smooth function of what is learnt, with a slope to measure.

        Rounding x + u to whole numbers, u spread evenly over one step, gives x on average: so averages over offsets of
        `v` have an ordinary derivative, and a straight-through gradient, averaged in the same way, must be it. The
        difference over an interval is the mean of the gradient over it. Compared are sums over a layer, in which what
        the steps of floating grids and of zero points leave averages out.
        """
        layer = self.layer(data_type, scheme, _away_from_edges())
        layer.make_learnable(minmax=True)
        # Of four values two are ends: near them lies everything, and only offsets have an average to compare.
        smooth = [name for name in self.smooth if name == "v" or scheme.bits > 2]
        learnt = [name for name in smooth if name in layer.learnt]
        if not learnt or not self.offsets_matter:
            pytest.skip("declared: nothing that is learnt is smooth")
        for name in learnt:
            # A longer range moves large weights away from zero; offsets move all of them up.
            along = torch.ones_like(layer.weight) if name == "v" else layer.weight.sign()
            found, slope = self._both_ways(layer, name, along)
            tolerated = self.gradient_tolerance * abs(slope)
            if abs(found - slope) > tolerated:
                parts, wrong = [], []
                beyond = (layer.weight.abs() > CUT).to(along.dtype)
                for where, part in (("inside the grid", 1 - beyond), ("at its ends and beyond", beyond)):
                    of_part, wanted = self._both_ways(layer, name, along * part)
                    parts.append(f"{of_part:.4g} against {wanted:.4g} over the weights {where}")
                    if abs(of_part - wanted) > tolerated / 2:
                        wrong.append(where)
                raise AssertionError(
                    f"the gradient of {name} is {found:.4g}; finite differences of the averaged weight are "
                    f"{slope:.4g}: {', '.join(parts)}. It is wrong {' and '.join(wrong)}."
                )

    def _both_ways(self, layer: TunableLinear, name: str, along: torch.Tensor) -> tuple[float, float]:
        """The gradient of one parameter, and the finite difference that it should be, over a direction of weights."""
        at = 0.0 if name == "v" else CUT
        with torch.no_grad():
            above, below = (self._averaged(layer, name, at + d, along).item() for d in (DELTA, -DELTA))
        layer.learnt.zero_grad()
        for point in range(POINTS):
            self._averaged(layer, name, at + DELTA * (2 * (point + 0.5) / POINTS - 1), along, learn=True)
        gradient = layer.learnt[name].grad
        assert gradient is not None, f"{name} is declared as tuned and gets no gradient."
        return float(gradient.sum()) / POINTS, (above - below) / (2 * DELTA)

    def _averaged(
        self, layer: TunableLinear, name: str, value: float, along: torch.Tensor, *, learn: bool = False
    ) -> torch.Tensor:
        """The weight's sum along a direction, one parameter at a value, averaged over offsets; with `.grad` of it."""
        total = torch.zeros(())
        for step in range(OFFSETS):
            with torch.no_grad():
                offset = (step + 0.5) / OFFSETS - 0.5
                for other, parameter in layer.learnt.items():
                    # The other end of a range stays out of the way of the one that moves.
                    parameter.fill_(0.0 if other == "v" else CUT - 4 * DELTA)
                layer.learnt[name].fill_(value)
                if "v" in layer.learnt:
                    layer.learnt["v"].add_(offset)
            part = (layer.quantized_weight().float() * along).sum() / OFFSETS
            if learn:
                part.backward()
            total += part.detach()
        return total

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


def _away_from_edges() -> torch.Tensor:
    """Weights well within a range and, in every run of 16, two far out, [32, 256].

    Within one step of where a grid ends, a straight-through gradient is none of the averaged weight; nothing is there.
    """
    generator = torch.Generator().manual_seed(5)
    weight = torch.rand(32, 256, generator=generator).sub_(0.5).mul_(0.4)
    ends = torch.rand(32, 16, 2, generator=generator).mul_(0.03).add_(0.97)
    runs = weight.view(32, 16, 16)
    runs[..., 3], runs[..., 11] = -ends[..., 0], ends[..., 1]
    return weight
