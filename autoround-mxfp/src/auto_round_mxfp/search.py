# SPDX-License-Identifier: Apache-2.0
"""The shared exponent that fits each block best, under importance weights.

A block minimises `sum(h (w - w')^2)`, h the importance of an input channel. The exponent is a whole number, so few
candidates are all there are: one more than the rule's coarsens small elements and helps only where the rule cuts large
ones off; each one less halves the steps and cuts off more, until cutting off costs more than any step could gain.
"""

from __future__ import annotations

import torch

from auto_round.data_type.kernels import chunks
from auto_round_mxfp.blocks import CHUNK, Grouping, Settings
from auto_round_mxfp.exponents import LIMIT, power_of_two, shared_exponents
from auto_round_mxfp.rounding import round_to_grid

__all__ = ["searched_scale"]

OFFSETS = (0, -1, 1, -2, -3, -4)
"""Tried in this order, relative to the rule's exponent; of equally good ones the first stays."""

MARGIN = 1e-6
"""The least relative gain over an earlier candidate that counts, above what summing in another order could feign."""


def searched_scale(weight: torch.Tensor, imatrix: torch.Tensor | None, settings: Settings) -> torch.Tensor:
    """The scale of each block, float32 [groups, 1].

    Args:
        weight: [out_features, in_features].
        imatrix: importance of each input channel, float32 [in_features], or None for equal importance.
    """
    groups = Grouping(weight, settings.group_size).groups
    importance = None if imatrix is None else _importance(imatrix, weight, settings)
    found = torch.empty(len(groups), dtype=torch.int32, device=groups.device)
    for rows in chunks(groups, CHUNK):
        x = groups[rows].float()
        plain = shared_exponents(x.abs().amax(-1), settings.element, settings.rule)
        x = x * power_of_two(-plain).unsqueeze(-1)
        h = None if importance is None else importance[rows]
        best, least = torch.zeros_like(plain), torch.full(plain.shape, torch.inf, device=x.device)
        scratch = torch.empty_like(x)
        for offset in OFFSETS:
            y = round_to_grid(x * 2.0**-offset, settings.element, scratch).mul_(2.0**offset).sub_(x).square_()
            error = (y if h is None else y.mul_(h)).sum(-1)
            inside = (plain + offset).abs() <= LIMIT
            better = inside & (error < least * (1.0 - MARGIN))
            least, best = torch.where(better, error, least), torch.where(better, offset, best)
        found[rows] = plain + best
    return power_of_two(found).unsqueeze(-1)


def _importance(imatrix: torch.Tensor, weight: torch.Tensor, settings: Settings) -> torch.Tensor:
    """Importance shaped like the groups; only ratios within one matter, and one that no token reached counts evenly."""
    wide = imatrix.detach().to(weight.device).float().clamp(min=0.0).expand(weight.shape)
    groups = Grouping(wide, settings.group_size).groups
    most = groups.amax(-1, keepdim=True)
    return torch.where(most > 0, groups / most.clamp(min=torch.finfo(torch.float32).tiny), 1.0)
