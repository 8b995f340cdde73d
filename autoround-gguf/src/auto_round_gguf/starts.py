# SPDX-License-Identifier: Apache-2.0
"""Every group by itself: the scale, and minimum, that fit it best before anything is rounded."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch

from auto_round_gguf.trial import TINY, Sums, Trial

__all__ = ["best_start", "refit"]

ENDS = tuple(-1.2 + 0.325 * i for i in range(7))
"""Steps by which the largest code moves away from the upper end of a group that has a minimum."""

PHASES = (0.0, -0.25, 0.25, 0.5)
"""Where between two codes the lower end of such a group lies; this gains more than any number of ends. A fourth took a
seventh off the divergence of a model with outliers in two bits, a fifth nothing."""

TURNS: dict[int, tuple[tuple[float, ...], tuple[float, ...]]] = {
    3: (tuple(-1.0 + 0.3 * i for i in range(9)), tuple(-0.5 + 0.3 * i for i in range(6))),
    4: (tuple(-1.0 + 0.3 * i for i in range(9)), tuple(-0.5 + 0.3 * i for i in range(6))),
    5: (tuple(-1.0 + 0.3 * i for i in range(9)), tuple(-0.5 + 0.3 * i for i in range(6))),
    6: (tuple(-0.9 + 0.3 * i for i in range(7)), (-0.3, 0.3, 0.9)),
    8: ((-0.3, 0.0, 0.3), ()),
}
"""By bits of signed types, the same for the grid's longer end on the extreme weight, and for its shorter end."""


def best_start(trial: Trial) -> tuple[torch.Tensor, torch.Tensor | None, Sums]:
    """Scale and minimum of each group, least squares for the codes of the best candidate, and the sums over those."""
    return _signed(trial) if trial.kind.signed else _ranged(trial)


def refit(trial: Trial, sums: Sums) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The least squares scale, and minimum, for the codes that sums were taken over."""
    if trial.kind.signed:
        return sums.xl / sums.ll.clamp(min=TINY), None
    determinant = trial.h * sums.ll - sums.l * sums.l
    scale = (trial.h * sums.xl - trial.x * sums.l) / determinant.clamp(min=TINY)
    # One code everywhere determines no scale: the minimum is the group's lower end then.
    lowest = sums.xl / sums.ll.clamp(min=TINY)
    singular = (determinant <= 1e-6 * trial.h * sums.ll) | (scale <= 0.0)
    scale = torch.where(singular, lowest, scale)
    minimum = (trial.x - scale * sums.l) / trial.h + trial.shift
    minimum = torch.where(singular, trial.shift, minimum)
    if trial.kind.super_bits is None:
        return scale, minimum
    # Minima of super-blocks are stored as what is subtracted, from zero on.
    anchored = (sums.xl + trial.shift * sums.l) / sums.ll.clamp(min=TINY)
    positive = minimum > 0.0
    return torch.where(positive, anchored, scale), minimum.clamp_(max=0.0)


def _ranged(trial: Trial) -> tuple[torch.Tensor, torch.Tensor | None, Sums]:
    length = (trial.high - trial.low).clamp(min=TINY)
    best: _Best | None = None
    for end, phase in itertools.product(ENDS, PHASES):
        sums = trial.sums_at((trial.kind.high + end) / length, torch.full_like(length, phase))
        best = _better(trial, sums, best)
    assert best is not None
    return best.scale, best.minimum, best.sums


def _signed(trial: Trial) -> tuple[torch.Tensor, torch.Tensor | None, Sums]:
    extreme = torch.where(trial.extreme == 0.0, 1.0, trial.extreme)
    longer, shorter = TURNS[trial.kind.bits]
    best: _Best | None = None
    for end in (*(trial.kind.low - end for end in longer), *(trial.kind.high + end for end in shorter)):
        best = _better(trial, trial.sums_at(end / extreme, None), best)
    assert best is not None
    return best.scale, None, best.sums


class _Best(NamedTuple):
    error: torch.Tensor
    scale: torch.Tensor
    minimum: torch.Tensor | None
    sums: Sums


def _better(trial: Trial, sums: Sums, best: _Best | None) -> _Best:
    """The better of a candidate, at the bottom of its parabola, and the best so far, group by group."""
    scale, minimum = refit(trial, sums)
    # At eight bits what is left over of the sums is lost in their rounding.
    error = trial.residual(scale) if trial.kind.bits == 8 else trial.error(sums, scale, minimum)
    if best is None:
        return _Best(error, scale, minimum, sums)
    better = error < best.error
    if minimum is not None and best.minimum is not None:
        minimum = torch.where(better, minimum, best.minimum)
    chosen = Sums(*(torch.where(better, a, b) for a, b in zip(sums, best.sums, strict=True)))
    return _Best(torch.where(better, error, best.error), torch.where(better, scale, best.scale), minimum, chosen)
