# SPDX-License-Identifier: Apache-2.0
"""What the tests of the kit stand on: the declarations of an author, and a layer set up as the tuner sets it up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from auto_round.data_type import DataType
from auto_round.errors import AutoRoundError
from auto_round.plan import LayerSpec
from auto_round.plugins import Registry
from auto_round.schemes import QuantizationScheme
from auto_round.tuning.layer import TunableLinear

__all__ = ["Declared", "weight_like"]

SLOW = "slow: more than a second"
SHAPES = ((16, 64), (5, 72), (1, 32), (8, 200))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Declared:
    """What an author says of a data type; tests never guess.

    Attributes:
        name: registered name of the data type.
        schemes: the schemes to try it under; their `data_type` must lead to it.
        shapes: shapes of weights, (out_features, in_features), ragged ones among them.
        scale_dtypes: dtypes in which formats keep its scales, None where the data type alone decides.
        idempotent: whether quantizing what is quantized changes nothing.
        scale_equivariant: factors that pass through: `q(f w) = f q(w)`, bit for bit in float32; () if none does.
        tolerates: how much a second pass, or a scaled one, may differ, relative to the largest weight; 0 is exactly.
        one_scale: whether all rows of a weight share a scale, besides those that `group_size` says.
        offsets_matter: whether `v` can change what large weights become; not so where it counts in units that are far
            below the steps of a floating grid.
        smooth: the learnt parameters that the weight is a smooth function of once rounding is averaged out; not those
            that a scale follows in jumps, a power of two say.
        gradient_tolerance: how far gradients may lie from finite differences of that function, as a part of them.
        search_may_lose: how many times as large the weighted squared error may become by a search that minimises
            something else as well.
        golden: file of recorded results, beside the test; written when it does not exist. None for none.
    """

    name: ClassVar[str]
    schemes: ClassVar[Sequence[QuantizationScheme]]
    shapes: ClassVar[Sequence[tuple[int, int]]] = SHAPES
    scale_dtypes: ClassVar[Sequence[torch.dtype | None]] = (torch.float16, torch.bfloat16)
    idempotent: ClassVar[bool] = True
    scale_equivariant: ClassVar[Sequence[float]] = (2.0, 0.25)
    tolerates: ClassVar[float] = 0.0
    one_scale: ClassVar[bool] = False
    offsets_matter: ClassVar[bool] = True
    smooth: ClassVar[Sequence[str]] = ("v", "min_scale", "max_scale")
    gradient_tolerance: ClassVar[float] = 0.1
    search_may_lose: ClassVar[float] = 1.0 + 1e-5
    golden: ClassVar[str | None] = None

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Every test that names one of these runs for each of what was declared."""
        if "slow" in metafunc.fixturenames:
            if not any(line.startswith("slow") for line in metafunc.config.getini("markers")):
                metafunc.config.addinivalue_line("markers", SLOW)
            metafunc.parametrize("slow", [pytest.param("", marks=pytest.mark.slow, id="slow")])
        for fixture, values in (
            ("scheme", self.schemes),
            ("shape", self.shapes),
            ("dtype", DTYPES),
            ("scale_dtype", self.scale_dtypes),
        ):
            if fixture in metafunc.fixturenames:
                metafunc.parametrize(fixture, values, ids=[_told(value) for value in values])

    @pytest.fixture
    def registry(self) -> Registry:
        """The plugins in which the data type is looked up; override it to look elsewhere."""
        from auto_round.plugins import default_registry

        return default_registry()

    @pytest.fixture
    def data_type(self, registry: Registry) -> DataType:
        """The data type under test."""
        try:
            return registry.data_type(self.name)
        except AutoRoundError:
            pytest.skip(f"there is no data type {self.name!r}: see test_the_name_is_that_of_a_data_type")

    def layer(
        self,
        data_type: DataType,
        scheme: QuantizationScheme,
        weight: torch.Tensor,
        *,
        scale_dtype: torch.dtype | None = None,
        search: bool = False,
    ) -> TunableLinear:
        """A layer as the tuner has it before the first step; skips what the data type says it does not take."""
        shape = (weight.shape[0], weight.shape[1])
        reason = data_type.supports(scheme.resolved(), shape)
        if reason:
            pytest.skip(f"{self.name} does not take it: {reason}")
        linear = nn.Linear(shape[1], shape[0], bias=False, device="meta")
        linear.weight = nn.Parameter(weight, requires_grad=False)
        spec = LayerSpec("layer", shape, weight.dtype, None, False, False, scheme.resolved(), data_type)
        tunable = TunableLinear(linear, replace(spec, scale_dtype=scale_dtype or data_type.scale_dtype), weight.dtype,
                                weight.device)  # fmt: skip
        tunable.share_with([tunable])
        if search:
            tunable.search(torch.linspace(0.5, 2.0, shape[1]))
        return tunable

    def quantized(self, data_type: DataType, scheme: QuantizationScheme, weight: torch.Tensor) -> torch.Tensor:
        """A weight as the data type gives it back, nothing learnt."""
        with torch.no_grad():
            return self.layer(data_type, scheme, weight).quantized_weight()


def weight_like(shape: tuple[int, int], dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Weights of the size that models have, a few large ones among them."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.05
    weight.view(-1)[:: max(1, weight.numel() // 7)] *= 6
    return weight.to(dtype)


def _told(value: Any) -> str:
    if isinstance(value, QuantizationScheme):
        return f"{value.data_type}-{value.bits}-{value.group_size}".replace(" ", "")
    return str(value).removeprefix("torch.").replace(" ", "")
