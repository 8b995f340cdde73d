# SPDX-License-Identifier: Apache-2.0
"""`int_asym`: whole numbers from 0 to 2^b - 1, a positive scale and a whole zero point."""

from __future__ import annotations

import itertools
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
from auto_round_int.places import ASYMMETRIC
from auto_round_int.search import Found, Trial, row_chunks

if TYPE_CHECKING:
    from auto_round.schemes import GroupSize, QuantizationScheme

__all__ = ["AsymmetricGrid", "IntAsym"]

ENDS = 5
"""Positions tried for each end of a range."""

LEAST = {2: 0.15, 3: 0.2, 4: 0.25, 5: 0.4, 6: 0.75, 7: 0.85, 8: 0.9}
"""The least part of an end that is tried, by bits: the finer the grid, the less it pays to cut off."""

WIDE, CLOSE = (5, 2.0), (2, 0.5)
"""Scales tried then on either side of what is best, and how far apart, as a multiple of 1 / (2^b + 16)."""


class AsymmetricGrid(Grid):
    """The range of the group, zero included, in 2^b - 1 equal steps, shifted so that zero is on the grid.

    With low = min(W, 0) and high = max(W, 0) of a group and the learnt factors a and c,

        s = (high c - low a) / (2^b - 1)
        z = clamp(round(-low a / s), 0, 2^b - 1)
        q = clamp(round(W / s + v) + z, 0, 2^b - 1)
        W' = s (q - z)

    s is rounded to the dtype it is stored in and kept at least a threshold above zero. The zero point is clamped
    because a scale that was rounded down can put it one step beyond what b bits hold.
    """

    def bounds(self, bits: int) -> tuple[int, int]:
        return 0, (1 << bits) - 1

    def scales(self, groups: torch.Tensor, min_scale: Factor, max_scale: Factor, settings: Settings) -> Scales:
        low, high = group_range(groups, settings)
        steps, bottom = (1 << settings.bits) - 1, low * factor(min_scale)
        scale = store_scale((high * factor(max_scale) - bottom).div_(steps), settings)
        zero_point = torch.div(bottom, scale.float()).neg_().round_().clamp_(0, steps)
        return Scales(scale.unsqueeze(-1), zero_point.unsqueeze(-1), low, high)

    def factor_gradients(
        self,
        scales: Scales,
        min_scale: Factor,
        max_scale: Factor,
        settings: Settings,
        by_scale: torch.Tensor,
        by_zero_point: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        steps, scale = (1 << settings.bits) - 1, scales.scale.float().reshape(-1)
        position = scales.low * factor(min_scale) / -scale
        # Clamping a zero point, at most one step, counts as part of its rounding.
        by_scale = where_moving(by_scale - by_zero_point * position / scale, scales.scale, settings)
        by_range = by_scale / steps
        return (by_zero_point / scale).add_(by_range).mul_(scales.low).neg_(), by_range * scales.high


def candidates(trial: Trial, bits: int) -> Iterator[Found]:
    """Grids worth trying: each end of the range drawn in by itself, in equal steps down to a part of it."""
    low = trial.groups.amin(-1, keepdim=True).clamp_(max=0.0)
    high = trial.groups.amax(-1, keepdim=True).clamp_(min=0.0)
    steps = (1 << bits) - 1
    parts = [1.0 - i * (1.0 - LEAST[bits]) / (ENDS - 1) for i in range(ENDS)]
    for below, above in itertools.product(parts, parts):
        bottom = low * below
        scale = trial.away_from_zero((high * above - bottom) / steps)
        yield Found(scale, (-bottom / scale).round_().clamp_(0, steps))


def around(best: Found, bits: int, steps: tuple[int, float], moves: tuple[int, ...] = (0,)) -> Iterator[Found]:
    """Grids close to what is best so far: scales on either side, with its zero point and with that moved by so much."""
    count, width = steps[0], steps[1] / ((1 << bits) + 16)
    for move, i in itertools.product(moves, range(-count, count + 1)):
        zero_point = None if best.zero_point is None else (best.zero_point + move).clamp_(0, (1 << bits) - 1)
        yield Found(best.scale * (1.0 + width * i), zero_point)


class IntAsym(IntegerDataType):
    """Whole numbers from 0 to 2^b - 1 with one positive scale and one whole zero point for each group."""

    name = "int_asym"
    summary = "integers of 2 to 8 bits over the range of each group, with a scale and a whole zero point"
    tuned_after_search: Mapping[str, Bounds] | None = {"v": None, "min_scale": (0.0, 2.0), "max_scale": (0.0, 2.0)}
    grid = AsymmetricGrid()
    runtimes = ASYMMETRIC

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
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Quantize and dequantize.

        Returns:
            the tensor rounded to the grid, the scale [groups, 1] and the zero point, float32 [groups, 1].
        """
        settings = Settings.of(bits, group_size, scale_dtype, q_scale_thresh, tensor_min, tensor_max)
        rounded, scales = quantize_dequantize(self.grid, tensor, v, min_scale, max_scale, settings)
        assert scales.zero_point is not None
        return rounded, scales.scale, scales.zero_point

    def freeze(self, low: torch.Tensor, high: torch.Tensor, scheme: QuantizationScheme) -> Mapping[str, torch.Tensor]:
        """The range whose grid has the scale and zero point for this one, as `tensor_min` and `tensor_max`, [1]."""
        scales = frozen_scales(self.grid, low, high, scheme)
        assert scales.zero_point is not None
        assert scheme.act_bits is not None
        steps, scale, zero_point = (1 << scheme.act_bits) - 1, scales.scale.float(), scales.zero_point
        return {"tensor_min": (-scale * zero_point).view(1), "tensor_max": (scale * (steps - zero_point)).view(1)}

    def search(
        self,
        weight: torch.Tensor,
        scheme: QuantizationScheme,
        *,
        imatrix: torch.Tensor | None,
        scale_dtype: torch.dtype,
        **shared: torch.Tensor,
    ) -> Mapping[str, torch.Tensor]:
        """The range of each group whose grid fits it best, as `tensor_min` and `tensor_max`, float32 [groups]."""
        settings = Settings.of(scheme.bits, scheme.group_size, scale_dtype)
        steps, lows, highs = (1 << scheme.bits) - 1, [], []
        for rows in row_chunks(weight, scheme.group_size):
            trial = Trial(weight[rows], imatrix, self.grid, settings)
            plain = self.grid.scales(trial.groups, 1.0, 1.0, settings)
            coarse, refit = trial.best(candidates(trial, scheme.bits))
            # Positions of the ends are far apart; scales and zero points close by make up for it.
            wide, refit = trial.best((coarse, *around(refit, scheme.bits, WIDE)))
            starts = (wide, *trial.best((wide, *around(refit, scheme.bits, CLOSE, (-1, 0, 1)))))
            before = Found(plain.scale.float(), plain.zero_point)
            low, high = range_of(trial.polish(before, starts), before, plain, steps)
            lows.append(low)
            highs.append(high)
        return {"tensor_min": torch.cat(lows), "tensor_max": torch.cat(highs)}


def range_of(found: Found, before: Found, plain: Scales, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The range that gives a found grid back, [groups]; the group's own where plain rounding stays.

    -s z and s (steps - z) are exact for scales of 16 bits, whose products with whole numbers up to 255 fit float32; so
    is the way back, s = (high - low) / steps and z = -low / s. A float32 scale may come back different in its last bit.
    """
    (scale, zero_point), (scale_before, zero_before) = found, before
    assert zero_point is not None
    assert zero_before is not None
    stays = ((scale == scale_before) & (zero_point == zero_before)).reshape(-1)
    low, high = -scale * zero_point, scale * (steps - zero_point)
    return torch.where(stays, plain.low, low.reshape(-1)), torch.where(stays, plain.high, high.reshape(-1))
