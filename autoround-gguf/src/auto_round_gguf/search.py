# SPDX-License-Identifier: Apache-2.0
"""Better grids than the ends of a group give, under importance weights; of super-blocks, both levels of scales.

1. Every group by itself: grids over more or less than its range; each is judged at the bottom of its own parabola, the
   weighted least squares scale and minimum for the codes it gives (`trial`).
2. Every super-block: for fixed codes the error is quadratic in the scales, so that quantized scales and minima, and
   the two float16 numbers they are multiples of, are chosen in turn from sums that are already there.
3. Codes anew under what is stored, and again from 2. The best grid as stored is kept, plain rounding among them.

ggml's search (`make_qkx3_quants`, `make_qx_quants`, MIT licence) tries the ends of step 1; it then quantizes the scales
of a super-block without looking at the weights again.
"""

from __future__ import annotations

import torch

from auto_round_gguf.grids import Searched, make_grid
from auto_round_gguf.starts import best_start, refit
from auto_round_gguf.storing import Stored, store
from auto_round_gguf.trial import Trial, importance
from auto_round_gguf.types import BlockType

__all__ = ["find_grid"]

CHUNK_CPU, CHUNK_ELSEWHERE = 1 << 19, 1 << 24
"""Weights searched at a time: on a CPU as many as its last cache holds, so that what has one value per group is worth
a call."""

ROUNDS = 3
"""Refits of what is stored."""

MARGIN = 1e-5
"""The least relative gain over plain rounding that counts, above what float32 sums could feign."""


def find_grid(weight: torch.Tensor, kind: BlockType, imatrix: torch.Tensor | None) -> Searched:
    """The best grid found for every group of a weight [out_features, in_features]."""
    h = importance(imatrix, kind)
    size = CHUNK_CPU if weight.device.type == "cpu" else CHUNK_ELSEWHERE
    step = max(1, size // weight.shape[1])
    groups, supers = [], []
    for rows in weight.split(step):
        found = _search(Trial(rows, h, kind), rows)
        groups.append(_columns(found.scale, found.minimum))
        if found.super_scale is not None:
            supers.append(_columns(found.super_scale, found.super_minimum))
    return Searched(torch.cat(groups), torch.cat(supers) if supers else None)


def _columns(scale: torch.Tensor, minimum: torch.Tensor | None) -> torch.Tensor:
    return scale.unsqueeze(1) if minimum is None else torch.stack((scale, minimum), 1)


def _search(trial: Trial, rows: torch.Tensor) -> Stored:
    best = _plain(rows, trial.kind)
    trial.sums(best.scale, best.minimum)
    least = _per_block(trial.residual(best.scale, best.minimum), trial.kind) * (1.0 - MARGIN)
    scale, minimum, sums = best_start(trial)
    for _ in range(ROUNDS):
        at = store(trial, sums, scale, minimum)
        sums = trial.sums(at.scale, at.minimum)
        error = _per_block(trial.residual(at.scale, at.minimum), trial.kind)
        better = error < least
        best, least = _choose(better, at, best, trial.kind), torch.where(better, error, least)
        scale, minimum = refit(trial, sums)
    return best


def _plain(rows: torch.Tensor, kind: BlockType) -> Stored:
    grid = make_grid(rows.detach().reshape(-1, kind.group), kind, 1.0, 1.0)
    flat = [
        None if t is None else t.flatten() for t in (grid.scale, grid.minimum, grid.super_scale, grid.super_minimum)
    ]
    assert flat[0] is not None
    return Stored(flat[0], *flat[1:])


def _per_block(values: torch.Tensor, kind: BlockType) -> torch.Tensor:
    return values if kind.super_bits is None else values.reshape(-1, kind.super_group).sum(1)


def _choose(better: torch.Tensor, one: Stored, other: Stored, kind: BlockType) -> Stored:
    each = better if kind.super_bits is None else better.repeat_interleave(kind.super_group)
    masks = (each, each, better, better)
    pairs = zip(masks, one, other, strict=True)
    chosen = [None if a is None or b is None else torch.where(m, a, b) for m, a, b in pairs]
    assert chosen[0] is not None
    return Stored(chosen[0], *chosen[1:])
