# SPDX-License-Identifier: Apache-2.0
"""Better scales than a group's minimum and maximum give, found one group at a time under importance weights.

With codes p = q - z and what they leave over, r = w - s p, each group minimises

    sum(h r^2) + LOUDNESS sum(h w r)^2 / sum(h w^2),        h the importance of an input channel.

The first part is the error of the layer's output if inputs are independent. It alone shrinks weights, at two bits by a
seventh: the optimum for fixed codes leaves an r that is orthogonal to p, not to w. Noise averages out over layers, and
a gain below one multiplies; so the part of r that lies along w, which the second term measures, costs extra.

For fixed codes the whole is a parabola in s, and the bottom of that judges a candidate. The best candidate is then
refitted and rounded again a few times; with a zero point also at the weighted least squares solution for both, the zero
point rounded down and up. Whatever is returned was measured as it will be stored, scale rounded and zero point whole,
and is kept only where it beats plain rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch

from auto_round.data_type.grouping import reshape_pad_tensor_by_group_size
from auto_round_int.grid import Grid, Settings, store_scale

if TYPE_CHECKING:
    from auto_round.schemes import GroupSize

__all__ = ["LOUDNESS", "Found", "Trial", "row_chunks"]

CHUNK_CPU, CHUNK_ELSEWHERE = 1 << 19, 1 << 24
"""Weights searched at a time: on a CPU few enough to stay in its caches over all candidates."""

ROUNDS = 3
"""Refits once the best candidate is known."""

LOUDNESS = 4.0
"""What a change of a group's gain costs, relative to noise; between 1 and 8 hardly anything changes at 2 to 4 bits."""

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
        self._energy = _squares(self._target)

    def away_from_zero(self, scale: torch.Tensor) -> torch.Tensor:
        """Scales kept as far from zero, and from overflow, as stored ones are; not rounded."""
        least, limit = self._settings.threshold, torch.finfo(self._settings.scale_dtype).max
        return torch.where(scale < 0, scale.clamp(-limit, -least), scale.clamp(least, limit))

    def stored(self, scale: torch.Tensor) -> torch.Tensor:
        """Scales as they will be stored, as float32."""
        return store_scale(scale, self._settings).float()

    def parabola(self, at: Found) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The error over the scale, codes fixed: `c - 2 b t + a t^2` for a scale `at.scale + t`.

        Returns:
            a, b and c, float32 [groups, 1]; the codes stay in `self._codes`, times the root of their importance.
        """
        codes, rest, zero_point = self._codes, self._rest, at.zero_point
        torch.div(self.groups, at.scale, out=codes).round_()
        if zero_point is None:
            codes.clamp_(self._low, self._high)
        else:
            torch.minimum(codes, self._high - zero_point, out=codes)
            torch.maximum(codes, self._low - zero_point, out=codes)
        if self._root is not None:
            codes.mul_(self._root)
        torch.addcmul(self._target, codes, at.scale, value=-1.0, out=rest)
        rr, pp = _squares(rest), _squares(codes)
        rp = rest.mul_(codes).sum(-1, keepdim=True)
        # w = r + s p, so what lies along w needs no further pass over the weights.
        rw, pw = torch.addcmul(rr, at.scale, rp), torch.addcmul(rp, at.scale, pp)
        loud = LOUDNESS / self._energy.clamp(min=TINY)
        return pp.addcmul_(pw * loud, pw), rp.addcmul_(pw * loud, rw), rr.addcmul_(rw * loud, rw)

    def error(self, at: Found) -> torch.Tensor:
        """The error of each group, float32 [groups, 1]."""
        return self.parabola(at)[2]

    def best(self, candidates: Iterable[Found]) -> tuple[Found, Found]:
        """The candidate of each group that is best as it is, and the refit of the one with the lowest parabola.

        The second is usually the better one, unless some codes round to others at the refitted scale.
        """
        least: tuple[torch.Tensor, torch.Tensor] | None = None
        for at in candidates:
            a, b, c = self.parabola(at)
            step = b / a.clamp_(min=TINY)
            bottom, refitted = c - b * step, Found(at.scale + step, at.zero_point)
            if least is None:
                least, found = (c, bottom), (at, refitted)
                continue
            found = (_choose(c < least[0], at, found[0]), _choose(bottom < least[1], refitted, found[1]))
            least = (torch.minimum(c, least[0]), torch.minimum(bottom, least[1]))
        return found

    def polish(self, plain: Found, starts: Iterable[Found]) -> Found:
        """The better of plain rounding and of what refitting makes of the best start, as stored, group by group."""
        found, least = plain, self.error(plain) * (1.0 - MARGIN) - self._energy * NOTHING
        proposals = list(starts)
        for _ in range(ROUNDS):
            for proposal in proposals:
                at = Found(self.stored(proposal.scale), proposal.zero_point)
                error = self.error(at)
                better = error < least
                least, found = torch.minimum(error, least), _choose(better, at, found)
            proposals = self._refits(found)
        return found

    def _refits(self, at: Found) -> list[Found]:
        """Better grids for the codes that a grid gives: another scale; another zero point, rounded down and up."""
        a, b, _ = self.parabola(at)
        refits = [Found(self._same_sign(at.scale + b / a.clamp(min=TINY), at.scale), at.zero_point)]
        if at.zero_point is None:
            return refits
        codes = self._codes  # h^(1/2) p
        root = torch.ones_like(codes) if self._root is None else self._root
        h, p, pp = _squares(root), (root * codes).sum(-1, keepdim=True), _squares(codes)
        w, wp = (root * self._target).sum(-1, keepdim=True), (self._target * codes).sum(-1, keepdim=True)
        # Normal equations of w = s p + m; the offset m moves the zero point by -m / s.
        determinant = (pp * h - p * p).clamp(min=TINY)
        scale = self._same_sign((wp * h - w * p) / determinant, at.scale)
        exact = at.zero_point - (w * pp - wp * p) / determinant / scale
        for zero_point in (exact.floor().clamp(self._low, self._high), exact.ceil().clamp(self._low, self._high)):
            shift = at.zero_point - zero_point
            best = (wp + shift * w) / (pp + 2 * shift * p + shift * shift * h).clamp(min=TINY)
            refits.append(Found(self._same_sign(best, at.scale), zero_point))
        return refits

    @staticmethod
    def _same_sign(scale: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
        """A refitted scale, the old one where the fit would turn its sign."""
        return torch.where(scale * old > 0, scale, old)


def row_chunks(weight: torch.Tensor, group_size: GroupSize) -> Iterator[slice]:
    """Slices of rows of a weight, few enough weights each; all of it where one group spans all rows."""
    rows, cols = weight.shape
    size = CHUNK_CPU if weight.device.type == "cpu" else CHUNK_ELSEWHERE
    step = rows if group_size == 0 else max(1, size // max(cols, 1))
    for start in range(0, rows, max(step, 1)):
        yield slice(start, min(start + step, rows))


def _squares(tensor: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(tensor, dim=-1, keepdim=True).square_()


def _grouped(tensor: torch.Tensor, settings: Settings) -> torch.Tensor:
    return reshape_pad_tensor_by_group_size(tensor, settings.group_size)[0]


def _choose(better: torch.Tensor, one: Found, other: Found) -> Found:
    if one.zero_point is None or other.zero_point is None:
        return Found(torch.where(better, one.scale, other.scale), None)
    return Found(torch.where(better, one.scale, other.scale), torch.where(better, one.zero_point, other.zero_point))
