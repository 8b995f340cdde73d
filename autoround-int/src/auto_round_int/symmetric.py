# SPDX-License-Identifier: Apache-2.0
"""`int_sym`: whole numbers from -2^(b-1) to 2^(b-1) - 1 times a scale that may be negative."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch

from auto_round.data_type import Bounds
from auto_round_int.fused import quantize_dequantize
from auto_round_int.grid import (
    Factor,
    Grid,
    Scales,
    Settings,
    factor,
    frozen_scales,
    group_range,
    store_scale,
    where_moving,
)
from auto_round_int.integer import IntegerDataType
from auto_round_int.places import SYMMETRIC
from auto_round_int.search import Found, Trial, row_chunks

if TYPE_CHECKING:
    from auto_round.schemes import GroupSize, QuantizationScheme

__all__ = ["IntSym", "SymmetricGrid", "parts"]

NEAR = {2: (9, 0.1), 3: (9, 0.05), 4: (9, 0.025)}
"""Steps on either side of plain rounding, and the relative change of 1 / s in each, by the number of bits."""

NEAR_FINE = (60, 0.0075)
"""The same at five bits and more, where the least errors lie in narrow valleys anywhere in this range."""

ABOVE, LARGEST, BELOW, SMALLEST = 1.15, 0.3, 1.08, 8.0
"""Beyond those: ratios of one scale to the next larger or smaller one, up to this part of plain rounding's 1 / s."""

AROUND = 6
"""Steps on either side of what is best then, and into how many of them one of the first steps is divided."""


class SymmetricGrid(Grid):
    """The full range of b bits, turned by the sign of the scale.

    The sign turns the longer end of the grid towards the weight of largest magnitude, which the grid then holds
    exactly. With low = min(W, 0) and high = max(W, 0) of a group and the learnt factors a and c,

        s = -low a / 2^(b-1)    if -low a > high c,    else  -high c / 2^(b-1)
        q = clamp(round(W / s + v), -2^(b-1), 2^(b-1) - 1)
        W' = s q

    and s = init_scale c where a scale was searched. s is rounded to the dtype it is stored in and then kept a
    threshold away from zero.
    """

    def bounds(self, bits: int) -> tuple[int, int]:
        return -(1 << (bits - 1)), (1 << (bits - 1)) - 1

    def scales(self, groups: torch.Tensor, min_scale: Factor, max_scale: Factor, settings: Settings) -> Scales:
        if settings.init_scale is not None:
            low = high = settings.init_scale.detach().float().reshape(-1)
            exact = low * factor(max_scale)
        else:
            low, high = group_range(groups, settings)
            below, above = -low * factor(min_scale), high * factor(max_scale)
            # Positive where below > above, else negative, also in a tie.
            exact = torch.maximum(below, above).copysign_((above - below).neg_()).div_(1 << (settings.bits - 1))
        return Scales(store_scale(exact, settings).unsqueeze(-1), None, low, high)

    def factor_gradients(
        self,
        scales: Scales,
        min_scale: Factor,
        max_scale: Factor,
        settings: Settings,
        by_scale: torch.Tensor,
        by_zero_point: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        moving = where_moving(by_scale, scales.scale, settings)
        if settings.init_scale is not None:
            return torch.zeros_like(moving), moving * scales.low
        # The sign of a scale tells which end it was made of.
        by_low = torch.ops.aten.threshold_backward(moving, scales.scale.float().reshape(-1), 0.0)
        steps = 1 << (settings.bits - 1)
        return by_low * scales.low / -steps, moving.sub_(by_low) * scales.high / -steps


def parts(bits: int, coarser: int = 1) -> Iterator[float]:
    """What to multiply plain rounding's 1 / s by.

    Even steps near it; beyond, a few larger scales, and smaller ones that cut outliers off, which pays where the grid
    is coarse or few inputs matter.
    """
    count, step = NEAR.get(bits, NEAR_FINE)
    count, step = count // coarser, step * coarser
    yield from (1.0 + step * i for i in range(-count, count + 1))
    part = 1.0 - step * count
    while part > LARGEST:
        part /= ABOVE**coarser
        yield part
    part = 1.0 + step * count
    while part < SMALLEST:
        part *= BELOW**coarser
        yield part


def candidates(trial: Trial, bits: int) -> Iterator[Found]:
    """Scales worth trying, plain rounding's among them.

    The sign that plain rounding takes, and in steps twice as large the opposite one, that puts the extreme weight on
    the grid's shorter end: few codes change from one step to the next, and refitting does the rest.
    """
    groups, steps = trial.groups, 1 << (bits - 1)
    extreme = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    for end, coarser in ((-steps, 1), (steps - 1, 2)):
        for part in parts(bits, coarser):
            yield Found(trial.away_from_zero(extreme / (end * part)), None)


def around(best: Found, bits: int) -> Iterator[Found]:
    """Scales close to the best of the candidates, itself among them."""
    step = NEAR.get(bits, NEAR_FINE)[1] / AROUND
    for i in range(-AROUND, AROUND + 1):
        yield Found(best.scale * (1.0 + step * i), None)


class IntSym(IntegerDataType):
    """Whole numbers from -2^(b-1) to 2^(b-1) - 1 times one scale for each group, which may be negative."""

    name = "int_sym"
    summary = "integers of 2 to 8 bits around zero, the full range, one signed scale for each group"
    tuned_after_search: Mapping[str, Bounds] | None = {"v": None, "max_scale": (0.0, 2.0)}
    grid = SymmetricGrid()
    runtimes = SYMMETRIC
    candidates = staticmethod(candidates)
    """Scales that `search` tries for the groups of a trial, with that many bits."""

    def supports(self, scheme: QuantizationScheme, shape: tuple[int, int]) -> str | None:
        if not scheme.sym:
            return f"{self.name} is symmetric; sym=False is for data type int_asym"
        return super().supports(scheme, shape)

    def quant_tensor(
        self,
        tensor: torch.Tensor,
        bits: int = 4,
        group_size: GroupSize = 128,
        v: torch.Tensor | float = 0,
        min_scale: Factor = 1.0,
        max_scale: Factor = 1.0,
        scale_dtype: torch.dtype = torch.float16,
        q_scale_thresh: float | None = None,
        tensor_min: torch.Tensor | None = None,
        tensor_max: torch.Tensor | None = None,
        init_scale: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Quantize and dequantize.

        Returns:
            the tensor rounded to the grid, the scale [groups, 1], and the zero point 2^(bits - 1) that stands for zero
            where codes are stored unsigned.
        """
        settings = Settings.of(bits, group_size, scale_dtype, q_scale_thresh, tensor_min, tensor_max, init_scale)
        rounded, scales = quantize_dequantize(self.grid, tensor, v, min_scale, max_scale, settings)
        return rounded, scales.scale, 1 << (bits - 1)

    def freeze(self, low: torch.Tensor, high: torch.Tensor, scheme: QuantizationScheme) -> Mapping[str, torch.Tensor]:
        """The scale for this range, as `init_scale`, float32 [1, 1]; see `frozen_scales` for its rounding."""
        return {"init_scale": frozen_scales(self.grid, low, high, scheme).scale.float()}

    def search(
        self,
        weight: torch.Tensor,
        scheme: QuantizationScheme,
        *,
        imatrix: torch.Tensor | None,
        scale_dtype: torch.dtype,
        **shared: torch.Tensor,
    ) -> Mapping[str, torch.Tensor]:
        """The scale of each group that fits it best, as `init_scale`, float32 [groups, 1]."""
        settings = Settings.of(scheme.bits, scheme.group_size, scale_dtype)
        found = []
        for rows in row_chunks(weight, scheme.group_size):
            trial = Trial(weight[rows], imatrix, self.grid, settings)
            plain = self.grid.scales(trial.groups, 1.0, 1.0, settings)
            coarse = trial.best(self.candidates(trial, scheme.bits))
            close = trial.best(at for best in coarse for at in around(best, scheme.bits))
            found.append(trial.polish(Found(plain.scale.float(), None), (*coarse, *close)).scale)
        return {"init_scale": torch.cat(found)}
