# SPDX-License-Identifier: Apache-2.0
"""Better scales than a group's minimum and maximum give, found one group at a time under importance weights.

Each group minimises `sum(h (w - s (q - z))^2)`, h the importance of an input channel. A candidate (s, z) rounds the
group to codes p = q - z; for fixed codes the error is a parabola in s, so with r = w - s p a candidate is judged by

    sum(h r^2) - sum(h r p)^2 / sum(h p^2),    the bottom of its parabola, at    s + sum(h r p) / sum(h p^2).

The best candidate is then refitted and rounded again a few times; with a zero point the refit is the weighted least
squares solution for both, the zero point rounded down and up. Whatever is returned was measured as it will be stored,
scale rounded and zero point whole, and is kept only where it beats plain rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch

from auto_round.data_type.grouping import reshape_pad_tensor_by_group_size
from auto_round_int.grid import Grid, Settings, store_scale

if TYPE_CHECKING:
    from auto_round.schemes import GroupSize

__all__ = ["Found", "Trial", "row_chunks"]

CHUNK_CPU, CHUNK_ELSEWHERE = 1 << 19, 1 << 24
"""Weights searched at a time: on a CPU few enough to stay in its caches over all candidates."""

ROUNDS = 3
"""Refits once the best candidate is known."""

MARGIN = 1e-6
"""The least relative gain over plain rounding that counts, above what summing in another order could feign."""

NOTHING = 1e-12
"""An error below this part of sum(h w^2) is none: float32 cannot tell."""

TINY = 1e-30


class Found(NamedTuple):
    """A grid for each group, float32 [groups, 1]: its scale, and its zero point (None where it has none)."""

    scale: torch.Tensor
    zero_point: torch.Tensor | None


class Trial:
    """Some groups with their importance, and how well grids fit them.

    Attributes:
        groups: float32 [groups, group size].
    """

    def __init__(self, weight: torch.Tensor, imatrix: torch.Tensor | None, grid: Grid, settings: Settings) -> None:
        self._settings = settings
        self._low, self._high = grid.bounds(settings.bits)
        self.groups = self._target = _grouped(weight.detach().float(), settings)
        self._root: torch.Tensor | None = None
        if imatrix is not None:
            importance = imatrix.detach().float().clamp(min=0.0).expand(weight.shape)
            root = _grouped(importance, settings).sqrt()
            most = root.amax(-1, keepdim=True)
            # Only ratios within a group matter; a group that no token of the calibration reached counts evenly.
            self._root = torch.where(most > 0, root / most.clamp(min=TINY), 1.0)
            self._target = self.groups * self._root
        self._codes, self._rest = torch.empty_like(self.groups), torch.empty_like(self.groups)

    def away_from_zero(self, scale: torch.Tensor) -> torch.Tensor:
        """Scales kept as far from zero, and from overflow, as stored ones are; not rounded."""
        least, limit = self._settings.threshold, torch.finfo(self._settings.scale_dtype).max
        return torch.where(scale < 0, scale.clamp(-limit, -least), scale.clamp(least, limit))

    def stored(self, scale: torch.Tensor) -> torch.Tensor:
        """Scales as they will be stored, as float32."""
        return store_scale(scale, self._settings).float()

    def sums(self, at: Found) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The sums of h r^2, h r p and h p^2 over each group, float32 [groups, 1]."""
        codes, rest, zero_point = self._codes, self._rest, at.zero_point
        torch.div(self.groups, at.scale, out=codes).round_()
        if zero_point is None:
            codes.clamp_(self._low, self._high)
        else:
            codes.add_(zero_point).clamp_(self._low, self._high).sub_(zero_point)
        if self._root is not None:
            codes.mul_(self._root)
        torch.addcmul(self._target, codes, at.scale, value=-1.0, out=rest)
        rr = torch.linalg.vector_norm(rest, dim=-1, keepdim=True).square_()
        pp = torch.linalg.vector_norm(codes, dim=-1, keepdim=True).square_()
        return rr, rest.mul_(codes).sum(-1, keepdim=True), pp

    def best(self, candidates: Iterable[Found]) -> Found:
        """The candidate of each group with the lowest parabola, its scale refitted."""
        least: torch.Tensor | None = None
        for at in candidates:
            rr, rp, pp = self.sums(at)
            step = rp / pp.clamp_(min=TINY)
            error, scale = rr - rp * step, at.scale + step
            if least is None:
                least, found = error, Found(scale, at.zero_point)
                continue
            better = error < least
            least, found = torch.minimum(error, least), _choose(better, Found(scale, at.zero_point), found)
        return found

    def polish(self, plain: Found, start: Found) -> Found:
        """The better of plain rounding and of what refitting makes of a start, as stored, group by group."""
        nothing = torch.linalg.vector_norm(self._target, dim=-1, keepdim=True).square_().mul_(NOTHING)
        found, least = plain, self.sums(plain)[0] * (1.0 - MARGIN) - nothing
        proposals = [start]
        for _ in range(ROUNDS):
            for proposal in proposals:
                at = Found(self.stored(proposal.scale), proposal.zero_point)
                error = self.sums(at)[0]
                better = error < least
                least, found = torch.minimum(error, least), _choose(better, at, found)
            proposals = self._refits(found)
        return found

    def _refits(self, at: Found) -> list[Found]:
        """The least squares grids for the codes that a grid gives, zero point rounded down and up."""
        _, rp, pp = self.sums(at)
        if at.zero_point is None:
            return [Found(at.scale + rp / pp.clamp(min=TINY), None)]
        codes = self._codes  # h^(1/2) p
        root = torch.ones_like(codes) if self._root is None else self._root
        h, p = root.square().sum(-1, keepdim=True), (root * codes).sum(-1, keepdim=True)
        w = (root * self._target).sum(-1, keepdim=True)
        wp = rp + at.scale * pp
        # Normal equations of w = s p + m; the offset m moves the zero point by -m / s.
        determinant = (pp * h - p * p).clamp(min=TINY)
        scale = (wp * h - w * p) / determinant
        offset = (w * pp - wp * p) / determinant
        scale = torch.where(scale > 0, scale, at.scale)
        exact = at.zero_point - offset / scale
        refits = []
        for zero_point in (exact.floor().clamp(self._low, self._high), exact.ceil().clamp(self._low, self._high)):
            shift = at.zero_point - zero_point
            best = (wp + shift * w) / (pp + 2 * shift * p + shift * shift * h).clamp(min=TINY)
            refits.append(Found(torch.where(best > 0, best, at.scale), zero_point))
        return refits


def row_chunks(weight: torch.Tensor, group_size: GroupSize) -> Iterator[slice]:
    """Slices of rows of a weight, few enough weights each; all of it where one group spans all rows."""
    rows, cols = weight.shape
    size = CHUNK_CPU if weight.device.type == "cpu" else CHUNK_ELSEWHERE
    step = rows if group_size == 0 else max(1, size // max(cols, 1))
    for start in range(0, rows, max(step, 1)):
        yield slice(start, min(start + step, rows))


def _grouped(tensor: torch.Tensor, settings: Settings) -> torch.Tensor:
    return reshape_pad_tensor_by_group_size(tensor, settings.group_size)[0]


def _choose(better: torch.Tensor, one: Found, other: Found) -> Found:
    if one.zero_point is None or other.zero_point is None:
        return Found(torch.where(better, one.scale, other.scale), None)
    return Found(torch.where(better, one.scale, other.scale), torch.where(better, one.zero_point, other.zero_point))
