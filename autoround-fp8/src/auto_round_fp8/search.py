# SPDX-License-Identifier: Apache-2.0
"""Better scales than the largest magnitude of a group gives, under the importance of each input channel.

Each group minimises `sum(h (w - s q)^2)`, h the importance, q what the grid has nearest to w / s. For fixed q the error
is a parabola in s, so with r = w - s q a candidate s is judged by

    sum(h r^2) - sum(h r q)^2 / sum(h q^2),    the bottom of its parabola, at    s + sum(h r q) / sum(h q^2),

and the best one is refitted and rounded again a few times: least squares over the grid. A floating point grid looks the
same at twice the scale, so that one octave of candidates covers it. What is returned was measured as it will be loaded,
the scale and the product rounded to their dtypes, and is kept only where it beats the plain scale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from auto_round.data_type.kernels import chunks
from auto_round_fp8.elements import round_to_grid_
from auto_round_fp8.scales import Settings, scales_of, stored
from auto_round_fp8.tiles import CHUNK, Tiles, part

__all__ = ["Trial", "searched_scale"]

OCTAVE = 24
"""Candidates from the plain scale up to twice it, each larger than the one before by the same ratio."""

BELOW = 3
"""Candidates below the plain scale, which cut the largest weights off, in the same ratio."""

ROUNDS = 3
"""Refits once the best candidate is known."""

MARGIN = 1e-6
"""The least relative gain that counts, above what summing in another order could feign."""

TINY = 1e-30

Rounding = Callable[[torch.Tensor], torch.Tensor]
"""float32 values, which it may overwrite, to the nearest of a grid."""


class Trial:
    """A weight in its groups with its importance, and how well scales fit them.

    Args:
        tiles: layout of the weight.
        rounded: what is divided by a scale and rounded, shaped like the weight.
        target: what scale and code should give, float32; the same for a grid that stands by itself.
        imatrix: importance of each input channel, float32, or None.
        nearest: rounding to the grid.
        loaded: what a product of scale and code becomes once it is stored in the dtype of the weight.
    """

    def __init__(
        self,
        tiles: Tiles,
        rounded: torch.Tensor,
        target: torch.Tensor,
        imatrix: torch.Tensor | None,
        nearest: Rounding,
        loaded: Rounding,
    ) -> None:
        self._tiles, self._nearest, self._loaded = tiles, nearest, loaded
        self._rounded, self._target = tiles.view(rounded), tiles.view(target)
        self._root: torch.Tensor | None = None
        if imatrix is not None:
            root = tiles.view(imatrix.detach().float().clamp(min=0.0).sqrt().expand(rounded.shape))
            most = tiles.spread(tiles.largest(root))
            # Only ratios within a group matter; a group that no token of the calibration reached counts evenly.
            self._root = torch.where(most > 0, root / most.clamp(min=TINY), 1.0)

    def sums(self, scales: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """The sums of h r^2, h r q and h q^2 over each group, for each of some scales."""
        tiles = self._tiles
        spreads = [tiles.spread(scale) for scale in scales]
        parts: list[tuple[list[torch.Tensor], ...]] = [([], [], []) for _ in scales]
        for rows in chunks(self._rounded, CHUNK):
            values = self._rounded[rows].float()
            root = None if self._root is None else self._root[rows]
            target = self._target[rows].float()
            target = target if root is None else target * root
            for spread, kept in zip(spreads, parts, strict=True):
                step = part(spread, rows)
                codes = self._nearest(values / step)
                if root is not None:
                    codes.mul_(root)
                rest = torch.addcmul(target, codes, step, value=-1.0)
                kept[1].append(tiles.totals(rest * codes))
                kept[0].append(tiles.totals(rest.square_()))
                kept[2].append(tiles.totals(codes.square_()))
        return [(tiles.gather(rr), tiles.gather(rp), tiles.gather(pp)) for rr, rp, pp in parts]

    def error(self, scale: torch.Tensor) -> torch.Tensor:
        """The sum of h r^2 over each group as it will be loaded."""
        tiles, spread, totals = self._tiles, self._tiles.spread(scale), []
        for rows in chunks(self._rounded, CHUNK):
            step = part(spread, rows)
            rest = self._loaded(self._nearest(self._rounded[rows].float() / step).mul_(step)) - self._target[rows]
            if self._root is not None:
                rest.mul_(self._root[rows])
            totals.append(tiles.totals(rest.square_()))
        return tiles.gather(totals)

    def best(self, plain: torch.Tensor, candidates: Sequence[torch.Tensor], store: Rounding) -> torch.Tensor:
        """The better, group by group, of a plain scale and of what refitting makes of the best candidate.

        Args:
            plain: scale of each group as it would be stored, in the shape of `Tiles.counts`.
            candidates: other scales, not rounded.
            store: rounds scales to what a file holds.
        """
        least, start = None, plain
        for scale, sums in zip(candidates, self.sums(candidates), strict=True):
            rr, rp, pp = sums
            step = rp / pp.clamp(min=TINY)
            bottom = rr - rp * step
            if least is None:
                least, start = bottom, scale + step
            else:
                start = torch.where(bottom < least, scale + step, start)
                least = torch.minimum(bottom, least)
        found, least = plain, self.error(plain) * (1.0 - MARGIN)
        proposal = start
        for _ in range(ROUNDS):
            at = store(proposal)
            error = self.error(at)
            better = error < least
            found, least = torch.where(better, at, found), torch.minimum(error, least)
            ((_, rp, pp),) = self.sums([found])
            proposal = found + rp / pp.clamp(min=TINY)
        return found


def searched_scale(weight: torch.Tensor, imatrix: torch.Tensor | None, settings: Settings) -> torch.Tensor:
    """The scale of each group that fits it best, float32 [groups, 1] or [blocks down, blocks across].

    Args:
        weight: [out_features, in_features].
        imatrix: importance of each input channel, float32 [in_features], or None for equal importance.
    """
    tiles, weight = Tiles(weight.shape, settings.group_size), weight.detach()
    plain, _ = scales_of(weight, tiles, 1.0, settings)
    least, element = settings.element.least_scale, settings.element

    def store(scale: torch.Tensor) -> torch.Tensor:
        return stored(scale.clamp(min=least), settings.scale_dtype)

    trial = Trial(
        tiles, weight, weight, imatrix, lambda x: round_to_grid_(x, element), lambda y: y.to(weight.dtype).float()
    )
    candidates = [plain * 2.0 ** (i / OCTAVE) for i in range(-BELOW, OCTAVE)]
    found = trial.best(plain, candidates, store)
    return found if len(tiles.counts) == 2 else found.reshape(-1, 1)
