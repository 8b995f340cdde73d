# SPDX-License-Identifier: Apache-2.0
"""What holds for the numbers a data type gives back, whatever its grid."""

from __future__ import annotations

import contextlib
import json
from typing import Any
from unittest import mock

import pytest
import torch

from auto_round.data_type import DataType
from auto_round.data_type.results import ResultError
from auto_round.errors import AutoRoundError, UnknownNameError
from auto_round.names import did_you_mean
from auto_round.plugins import Registry
from auto_round.schemes import QuantizationScheme
from auto_round.testing.conformance.base import Declared, weight_like

__all__ = ["ValueTests"]


class ValueTests(Declared):
    """`quant_tensor` by itself."""

    def test_the_name_is_that_of_a_data_type(self, registry: Registry) -> None:
        """All other tests are skipped where it is not."""
        try:
            registry.data_type(self.name)
        except UnknownNameError:
            names = registry.data_type_names()
            told = f"name = {self.name!r}: no installed plugin registers a data type of that name"
            told += did_you_mean(self.name, names) or f". Registered are: {', '.join(names) or 'none'}."
            broken = [line for line in registry.report() if line.state in ("broken", "refused")]
            told += "".join(f" Plugin {line.name} is {line.state}: {line.reason}" for line in broken)
        except AutoRoundError as error:
            told = f"name = {self.name!r}: {error}"
        else:
            return
        pytest.fail(told, pytrace=False)

    def test_the_scheme_leads_to_it(self, data_type: DataType, registry: Registry, scheme: QuantizationScheme) -> None:
        """A scheme's `data_type`, completed with bits and symmetry, is the registered name."""
        found = registry.data_type_for(scheme).name
        assert found == self.name, f"scheme {scheme.data_type} leads to {found}; the contract wants {self.name}."

    def test_shape_and_dtype_stay(
        self, data_type: DataType, scheme: QuantizationScheme, shape: tuple[int, int], dtype: torch.dtype
    ) -> None:
        weight = weight_like(shape, dtype)
        rounded = self.quantized(data_type, scheme, weight)
        assert rounded.shape == weight.shape, "quant_tensor must return the tensor in the shape it was given."
        assert rounded.dtype == dtype, "quant_tensor must return the tensor in the dtype it was given."
        assert bool(torch.isfinite(rounded).all()), "finite weights must give finite weights back."

    def test_three_things_are_returned(self, data_type: DataType, scheme: QuantizationScheme) -> None:
        """The tensor, the scale, the zero point; of the last two nothing is said but that they describe the grid."""
        returned: list[Any] = []
        answer = data_type.quant_tensor

        def listen(_self: DataType, *args: Any, **offers: Any) -> Any:
            returned.append(answer(*args, **offers))
            return returned[-1]

        layer = self.layer(data_type, scheme, weight_like(self.shapes[0]))
        with mock.patch.object(type(data_type), "quant_tensor", listen), contextlib.suppress(ResultError):
            layer.quantized_weight()
        (found,) = returned
        told = f"quant_tensor must return a tuple of three (tensor, scale, zero point), not {_shown(found)}."
        assert isinstance(found, tuple), told
        assert len(found) == 3, told
        assert isinstance(found[0], torch.Tensor), told

    def test_it_is_close(self, data_type: DataType, scheme: QuantizationScheme, shape: tuple[int, int]) -> None:
        """Whatever the grid is, most of a weight's energy is there afterwards."""
        weight = weight_like(shape)
        lost = (self.quantized(data_type, scheme, weight) - weight).norm() / weight.norm()
        assert lost < 1, f"{lost:.0%} of the weight's norm is lost: zeros would be as good."

    def test_rows_that_share_no_scale_stand_alone(
        self, data_type: DataType, scheme: QuantizationScheme, shape: tuple[int, int]
    ) -> None:
        """No row is forgotten, and no group goes on in the next row, however ragged rows are."""
        height = self._rows_of_a_scale(scheme)
        if height is None:
            pytest.skip("all rows share a scale (one_scale = True or group_size = 0)")
        weight = weight_like(shape)
        together = self.quantized(data_type, scheme, weight)
        alone = [self.quantized(data_type, scheme, rows.clone()) for rows in weight.split(height)]
        for number, (found, wanted) in enumerate(zip(together.split(height), alone, strict=True)):
            first = number * height
            told = f"row {first}" if height == 1 else f"rows {first} to {first + len(wanted) - 1}"
            self._equal(found, wanted, f"{told} must come out as in a weight of nothing else, for it shares no scale")

    def test_inputs_are_left_alone(self, data_type: DataType, scheme: QuantizationScheme) -> None:
        weight = weight_like(self.shapes[0])
        before = weight.clone()
        layer = self.layer(data_type, scheme, weight, search=True)
        layer.quantized_weight()
        layer.finish()
        assert torch.equal(weight, before), "quant_tensor, search and encode must not write into their inputs."

    def test_it_is_deterministic(self, data_type: DataType, scheme: QuantizationScheme) -> None:
        weight = weight_like(self.shapes[0])
        first, second = (self.quantized(data_type, scheme, weight.clone()) for _ in range(2))
        assert torch.equal(first, second), "the same weight must give the same result."

    def test_the_state_of_random_numbers_stays(self, data_type: DataType, scheme: QuantizationScheme) -> None:
        weight = weight_like(self.shapes[0])
        before = torch.random.get_rng_state()
        layer = self.layer(data_type, scheme, weight, search=True)
        layer.quantized_weight()
        layer.finish()
        same = torch.equal(torch.random.get_rng_state(), before)
        assert same, "quant_tensor, search and encode must neither seed nor draw from torch's own random numbers."

    def test_quantizing_twice_changes_nothing(self, data_type: DataType, scheme: QuantizationScheme) -> None:
        if not self.idempotent:
            pytest.skip("declared: idempotent = False")
        once = self.quantized(data_type, scheme, weight_like(self.shapes[0]))
        self._equal(self.quantized(data_type, scheme, once), once, "what is quantized must stay as it is")

    def test_a_factor_passes_through(self, data_type: DataType, scheme: QuantizationScheme) -> None:
        if not self.scale_equivariant:
            pytest.skip("declared: scale_equivariant = ()")
        weight = weight_like(self.shapes[0])
        for factor in self.scale_equivariant:
            scaled = self.quantized(data_type, scheme, weight * factor)
            wanted = self.quantized(data_type, scheme, weight) * factor
            self._equal(scaled, wanted, f"q({factor} w) must be {factor} q(w)")

    def test_zeros_stay_zeros(self, data_type: DataType, scheme: QuantizationScheme) -> None:
        weight = weight_like(self.shapes[0])
        weight[0] = 0.0
        rounded = self.quantized(data_type, scheme, weight)
        assert bool((rounded[0] == 0).all()), "a row of zeros must stay zeros, without NaN from a scale of zero."
        nothing = self.quantized(data_type, scheme, torch.zeros(self.shapes[0]))
        assert bool((nothing == 0).all()), "a weight of zeros must stay zeros."

    def test_devices_agree(self, data_type: DataType, scheme: QuantizationScheme) -> None:
        """On an accelerator the same numbers come out, but for weights so near the middle of two that both are right.

        Kernels may multiply by a reciprocal where a CPU divides, which moves a quotient by one unit in the last place.
        """
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        if accelerator is None:
            pytest.skip("there is no accelerator")
        weight = weight_like(self.shapes[0])
        there = self.quantized(data_type, scheme, weight.to(accelerator))
        assert there.device.type == accelerator.type, "quant_tensor must return the tensor on the device it was given."
        differing = (there.cpu() != self.quantized(data_type, scheme, weight)).float().mean()
        assert differing <= 0.005, f"{differing:.1%} of the weights differ between {accelerator.type} and cpu."

    @pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12])
    def test_tiny_and_huge_weights_stay_finite(
        self, data_type: DataType, scheme: QuantizationScheme, size: float
    ) -> None:
        rounded = self.quantized(data_type, scheme, weight_like(self.shapes[0]) * size)
        assert bool(torch.isfinite(rounded).all()), f"weights around {size:g} must give finite results."

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
    def test_what_is_no_number_is_refused_or_does_not_spread(
        self, data_type: DataType, scheme: QuantizationScheme, bad: float
    ) -> None:
        """An error of ours, or damage that stays within the rows that share a scale."""
        shape = (64, self.shapes[0][1])  # rows enough for more than one block
        weight = weight_like(shape)
        weight[0, 0] = bad
        try:
            rounded = self.quantized(data_type, scheme, weight)
        except AutoRoundError:
            return  # said before anything was lost
        except Exception as error:
            raise AssertionError(
                f"a weight that is {bad} must raise an AutoRoundError, or keep what is no number within the rows that "
                f"share its scale; it raised {type(error).__name__}: {error}"
            ) from error
        height = self._rows_of_a_scale(scheme)
        if height is None or height >= weight.shape[0]:
            return
        plain = self.quantized(data_type, scheme, weight_like(shape))
        assert bool(torch.isfinite(rounded[height:]).all()), "a NaN must not spread to rows it shares no scale with."
        assert torch.equal(rounded[height:], plain[height:]), "a NaN must not change rows it shares no scale with."

    def test_the_spec_card_is_plain_data(self, data_type: DataType) -> None:
        card = dict(data_type.describe())
        assert json.loads(json.dumps(card)) == card, "describe must return what JSON can hold."
        assert card.get("name") == self.name, "describe must say the registered name as `name`."
        assert data_type.summary.strip(), "a data type needs a summary, one line for listings."

    def _rows_of_a_scale(self, scheme: QuantizationScheme) -> int | None:
        """How many rows share scales with each other, None where all do."""
        if self.one_scale or scheme.group_size == 0:
            return None
        return scheme.group_size[0] if isinstance(scheme.group_size, tuple) else 1

    def _equal(self, found: torch.Tensor, wanted: torch.Tensor, told: str) -> None:
        largest = float(wanted.abs().max())
        worst = float((found - wanted).abs().max())
        assert worst <= self.tolerates * largest, f"{told}; it is off by {worst / largest:.2g} of the largest weight."


def _shown(found: Any) -> str:
    kind = type(found).__name__
    return (
        f"a {kind} of {', '.join(type(part).__name__ for part in found)}" if isinstance(found, tuple) else f"a {kind}"
    )
