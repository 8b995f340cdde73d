# SPDX-License-Identifier: Apache-2.0
"""`int_sym_gptq`: whole numbers from -2^(b-1) to 2^(b-1) - 1 times a positive scale, the grid of GPTQ."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from auto_round_int.grid import Factor, Scales, Settings, factor, group_range, store_scale, where_moving
from auto_round_int.search import Found, Trial
from auto_round_int.symmetric import IntSym, SymmetricGrid, parts

__all__ = ["IntSymGptq", "RestrictedGrid"]


class RestrictedGrid(SymmetricGrid):
    """Steps of one size over both sides of zero, half a step short of the longer one.

    With low = min(W, 0) and high = max(W, 0) of a group and the learnt factors a and c,

        s = 2 max(-low a, high c) / (2^b - 1)
        q = clamp(round(W / s + v), -2^(b-1), 2^(b-1) - 1)
        W' = s q

    and s = init_scale c where a scale was searched or frozen; s is rounded to the dtype it is stored in and kept a
    threshold above zero. The scale of Frantar et al. 2022, arXiv:2210.17323, except in groups without a negative
    weight, where theirs is half as large and cuts off the larger half of the weights.
    """

    def scales(self, groups: torch.Tensor, min_scale: Factor, max_scale: Factor, settings: Settings) -> Scales:
        if settings.init_scale is not None:
            return super().scales(groups, min_scale, max_scale, settings)
        low, high = group_range(groups, settings)
        longer = torch.maximum(-low * factor(min_scale), high * factor(max_scale))
        exact = (longer * 2).div_((1 << settings.bits) - 1)
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
        if settings.init_scale is not None:
            return super().factor_gradients(scales, min_scale, max_scale, settings, by_scale, by_zero_point)
        moving = where_moving(by_scale, scales.scale, settings).mul_(2 / ((1 << settings.bits) - 1))
        below, above = -scales.low * factor(min_scale), scales.high * factor(max_scale)
        # One where the lower end is the longer one, a half in a tie, else zero.
        part = torch.sign(below - above).add_(1).mul_(0.5)
        return moving * part * -scales.low, moving * (1 - part) * scales.high


def candidates(trial: Trial, bits: int) -> Iterator[Found]:
    """Positive scales worth trying: around plain rounding's, and smaller ones that cut outliers off."""
    plain = trial.groups.abs().amax(-1, keepdim=True) * (2 / ((1 << bits) - 1))
    for part in parts(bits):
        yield Found(trial.away_from_zero(plain / part), None)


class IntSymGptq(IntSym):
    """Whole numbers from -2^(b-1) to 2^(b-1) - 1 times one positive scale for each group.

    What compressed-tensors computes for integer activations, while vLLM has steps of max|x| / (2^(b-1) - 1), larger by
    0.4 % at eight bits.
    """

    name = "int_sym_gptq"
    summary = "integers of 2 to 8 bits around zero, one positive scale for each group"
    grid = RestrictedGrid()
    candidates = staticmethod(candidates)
