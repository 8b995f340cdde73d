# SPDX-License-Identifier: Apache-2.0
"""The grid of each group: scale and minimum as a file stores them, from the group's range, learnt factors or a search.

Everything here has one value per group, so that autograd costs next to nothing; the passes over weights are in `fused`.
All float32. With low and high the ends of a group, a and c the learnt factors:

| types | scale and minimum of a group |
|---|---|
| q4_0, q5_0 | s = -extreme / 2^(b-1), extreme the one of low a and high c that is further from zero |
| q8_0 | s = max(-low a, high c) / 127 |
| q4_1, q5_1 | m = low a, s = (high c - m) / (2^b - 1) |
| q3_k, q6_k | s as q4_0; D = -(the s furthest from zero) / P, s' = D clamp(round(s / D), -P, P - 1), P = 2^(p-1) |
| q2_k, q4_k, q5_k | s, m as q4_1, low <= 0 <= high; D = max s / P, s' = D min(round(s / D), P), P = 2^p - 1; so -m |

p: `super_bits`; D: float16, one per super-block. Scales of the first three rows are float16; their codes are computed
with the scale before it is rounded, as ggml does; those of the last two with s' and m', as stored.

Sources: ggml's reference quantizers for the first three rows; for the super-blocks the learnt form of
Cheng et al. 2023, arXiv:2309.05516, applied to both ends of a group, then to the scales themselves.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from auto_round.data_type.rounding import round_ste
from auto_round_gguf.types import BlockType

__all__ = ["Factor", "Grid", "Searched", "group_ends", "make_grid", "reciprocal"]

Factor = torch.Tensor | float
"""A learnt factor: [groups], or one number."""

HALF_MAX = 65504.0

TINY = 1e-38

CHUNK = 1 << 20


class Searched(NamedTuple):
    """What a search found, in place of the range of the groups.

    Attributes:
        groups: float32 [groups, 1], the scales, or [groups, 2], scales and minima.
        supers: float32 [super-blocks, 1] or [super-blocks, 2], what those are multiples of; None without super-blocks.
    """

    groups: torch.Tensor
    supers: torch.Tensor | None


class Grid(NamedTuple):
    """The grid of each group; differentiable in `scale` and `minimum` where the learnt factors are.

    Attributes:
        scale, minimum: float32 [groups, 1], exactly what is stored; minimum is None for signed types.
        inverse, shift: float32 [groups, 1]: a weight w lies at `(w - shift) * inverse` on the axis of codes.
        scale_codes, minimum_codes: the quantized scales and minima, float32 [super-blocks, groups of one], or None.
        super_scale, super_minimum: float32 [super-blocks, 1], float16 values, or None.
    """

    scale: torch.Tensor
    minimum: torch.Tensor | None
    inverse: torch.Tensor
    shift: torch.Tensor | None
    scale_codes: torch.Tensor | None = None
    minimum_codes: torch.Tensor | None = None
    super_scale: torch.Tensor | None = None
    super_minimum: torch.Tensor | None = None


class _Half(torch.autograd.Function):
    """Rounds to float16, with the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clamp(-HALF_MAX, HALF_MAX).half().float()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0]


def half_ste(x: torch.Tensor) -> torch.Tensor:
    """The nearest float16, as float32; straight through."""
    result: torch.Tensor = _Half.apply(x)
    return result


def reciprocal(x: torch.Tensor) -> torch.Tensor:
    """1 / x, and 0 where x is 0 or so small that 1 / x is infinite; differentiable everywhere."""
    usable = x.abs() > TINY
    return torch.where(usable, 1.0 / torch.where(usable, x, 1.0), 0.0)


def make_grid(
    groups: torch.Tensor, kind: BlockType, min_scale: Factor, max_scale: Factor, searched: Searched | None = None
) -> Grid:
    """The grid of each group.

    Args:
        groups: [groups, group size], whole super-blocks in order.
        min_scale, max_scale: learnt factors; of a searched grid they multiply the minimum and the scale.
    """
    with torch.no_grad():
        low, high = (None, None) if searched is not None else group_ends(groups)
    if kind.signed:
        scale = _signed_scale(groups, kind, low, high, _column(min_scale), _column(max_scale), searched)
        if kind.super_bits is None:
            return Grid(half_ste(scale), None, reciprocal(scale.detach()), None)
        stored, codes, supers = _quantize_signed(scale, kind, None if searched is None else searched.supers)
        return Grid(stored, None, reciprocal(stored.detach()), None, codes, None, supers)
    if searched is not None:
        scale, minimum = searched.groups[:, :1] * _column(max_scale), searched.groups[:, 1:] * _column(min_scale)
    else:
        assert low is not None
        assert high is not None
        if kind.super_bits is not None:
            low, high = low.clamp(max=0.0), high.clamp(min=0.0)
        minimum = low * _column(min_scale)
        scale = (high * _column(max_scale) - minimum) / kind.high
    if kind.super_bits is None:
        shift = minimum.detach() if isinstance(minimum, torch.Tensor) else minimum
        return Grid(half_ste(scale), half_ste(minimum), reciprocal(scale.detach()), shift)
    found = (None, None) if searched is None or searched.supers is None else searched.supers.split(1, 1)
    stored, scale_codes, super_scale = _quantize_positive(scale, kind, found[0])
    depth, minimum_codes, super_minimum = _quantize_positive(-minimum, kind, found[1])
    base = -depth
    return Grid(
        *(stored, base, reciprocal(stored.detach()), base.detach()),
        *(scale_codes, minimum_codes, super_scale, super_minimum),
    )


def group_ends(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The least and the largest value of each group, float32 [groups, 1]."""
    lows, highs = [], []
    step = max(1, CHUNK // groups.shape[1]) if groups.device.type == "cpu" else max(1, groups.shape[0])
    for part in groups.split(step):
        wide = part.float()  # only the float32 forms are vectorised
        lows.append(wide.amin(-1, keepdim=True))
        highs.append(wide.amax(-1, keepdim=True))
    return torch.cat(lows), torch.cat(highs)


def _column(factor: Factor) -> Factor:
    return factor.float().reshape(-1, 1) if isinstance(factor, torch.Tensor) else factor


def _signed_scale(
    groups: torch.Tensor,
    kind: BlockType,
    low: torch.Tensor | None,
    high: torch.Tensor | None,
    min_scale: Factor,
    max_scale: Factor,
    searched: Searched | None,
) -> torch.Tensor:
    if searched is not None:
        return searched.groups * max_scale
    assert low is not None
    assert high is not None
    below, above = -low.clamp(max=0.0) * min_scale, high.clamp(min=0.0) * max_scale
    if kind.low == -kind.high:
        return torch.where(below > above, below, above) / kind.high
    negative = below > above
    ties = (below == above).squeeze(1)
    if kind.super_bits is None and bool(ties.any()):  # of two extremes of one size ggml takes the first
        tied = groups[ties].float()
        first = tied.gather(1, tied.abs().argmax(1, keepdim=True))
        negative = negative.clone()
        negative[ties] = first < 0
    return torch.where(negative, below, -above) / -kind.low


def _quantize_signed(
    scale: torch.Tensor, kind: BlockType, found: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    assert kind.super_bits is not None
    least = -(1 << (kind.super_bits - 1))
    scales = scale.reshape(-1, kind.super_group)
    if found is None:
        unit = scales.gather(1, scales.detach().abs().argmax(1, keepdim=True)) / least
    else:  # grows where learnt factors ask for more than the largest code
        codes = scales * reciprocal(found)
        beyond = torch.maximum(codes.amax(1, keepdim=True) / (-least - 1), codes.amin(1, keepdim=True) / least)
        unit = found * beyond.clamp(min=1.0)
    unit = half_ste(unit) + 0.0  # -0.0 becomes 0.0
    codes = round_ste(scales * reciprocal(unit)).clamp(least, -least - 1) + 0.0
    return (codes * unit).reshape(-1, 1), codes.detach(), unit.detach()


def _quantize_positive(
    values: torch.Tensor, kind: BlockType, found: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    assert kind.super_bits is not None
    most = (1 << kind.super_bits) - 1
    values = values.reshape(-1, kind.super_group)
    unit = values.max(1, keepdim=True).values.clamp(min=0.0) / most
    unit = half_ste(unit if found is None else torch.maximum(unit, found))
    codes = round_ste(values * reciprocal(unit)).clamp(0, most)
    return (codes * unit).reshape(-1, 1), codes.detach(), unit.detach()
