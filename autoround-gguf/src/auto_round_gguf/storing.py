# SPDX-License-Identifier: Apache-2.0
"""From the best scales to those a file can hold, for fixed codes: every choice is judged by the error it gives.

For fixed codes the error of a super-block is quadratic in its scales s = D a and minima m = -M b (a, b whole numbers),
and so in D and M for fixed a and b, and in each a and b for the rest fixed. All of it is one value per group or less.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from auto_round_gguf.trial import TINY, Sums, Trial

__all__ = ["Stored", "store"]

HALF_MAX = 65504.0

SPANS = (1.0, 0.97, 1.03)
"""Sizes tried for the unit of a super-block's scales, relative to the one that just holds the largest."""


class Stored(NamedTuple):
    """A grid as a file holds it: float32 [groups], and [super-blocks] where there are super-blocks."""

    scale: torch.Tensor
    minimum: torch.Tensor | None
    super_scale: torch.Tensor | None = None
    super_minimum: torch.Tensor | None = None


def store(trial: Trial, sums: Sums, scale: torch.Tensor, minimum: torch.Tensor | None) -> Stored:
    """The grid nearest in error to what least squares found."""
    kind = trial.kind
    if kind.super_bits is None:
        scale = _half(scale)
        if minimum is None:
            return Stored(scale, None)
        return Stored(scale, _half((trial.x - scale * sums.l) / trial.h + trial.shift))
    if minimum is None:
        return _signed(trial, sums, scale)
    return _ranged(trial, sums, scale, minimum)


def _half(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(-HALF_MAX, HALF_MAX).half().float()


def _inverse(x: torch.Tensor) -> torch.Tensor:
    inverse = 1.0 / x
    return torch.where(inverse.isfinite(), inverse, 0.0)


def _signed(trial: Trial, sums: Sums, scale: torch.Tensor) -> Stored:
    kind = trial.kind
    assert kind.super_bits is not None
    least = -(1 << (kind.super_bits - 1))
    blocks = (-1, kind.super_group)
    scales, ll, xl = scale.reshape(blocks), sums.ll.reshape(blocks), sums.xl.reshape(blocks)
    extreme = scales.gather(1, scales.abs().argmax(1, keepdim=True))
    best: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
    for end in (*(least / span for span in SPANS), *((-least - 1) / span for span in SPANS)):
        unit = _half(extreme / end)
        for _ in range(2):
            codes = (scales * _inverse(unit)).round_().clamp_(least, -least - 1)
            unit = _half((codes * xl).sum(1, keepdim=True) / (codes * codes * ll).sum(1, keepdim=True).clamp(min=TINY))
        stored = codes * unit
        error = (stored * (stored * ll - 2.0 * xl)).sum(1, keepdim=True)
        if best is None:
            best = error, unit, codes
            continue
        better = error < best[0]
        best = tuple(torch.where(better, a, b) for a, b in zip((error, unit, codes), best, strict=True))  # type: ignore[assignment]
    assert best is not None
    return Stored((best[2] * best[1]).flatten(), None, best[1].flatten())


def _ranged(trial: Trial, sums: Sums, scale: torch.Tensor, minimum: torch.Tensor) -> Stored:
    kind = trial.kind
    assert kind.super_bits is not None
    most = (1 << kind.super_bits) - 1
    blocks = (-1, kind.super_group)
    per_block = (sums.ll, sums.l, trial.h, sums.xl + trial.shift * sums.l, trial.x + trial.shift * trial.h)
    ll, l, h, xl, x = (t.reshape(blocks) for t in per_block)  # noqa: E741 - as in the formula
    quadratic = _Quadratic(ll, l, h, xl, x)
    scales, depths = scale.reshape(blocks), -minimum.reshape(blocks)
    top, deepest = scales.amax(1, keepdim=True) / most, depths.amax(1, keepdim=True) / most
    best: tuple[torch.Tensor, ...] | None = None
    for span in SPANS:
        units = _half(top * span), _half(deepest * span)
        found = quadratic.choose(scales, depths, *units, most)
        if best is None:
            best = found
            continue
        better = found[0] < best[0]
        best = tuple(torch.where(better, a, b) for a, b in zip(found, best, strict=True))
    assert best is not None
    _, unit, depth_unit, codes, depth_codes = best
    return Stored((codes * unit).flatten(), -(depth_codes * depth_unit).flatten(), unit.flatten(), depth_unit.flatten())


class _Quadratic(NamedTuple):
    """The error of groups [super-blocks, groups] in s and d: s^2 ll - 2 s d l + d^2 h - 2 s xl + 2 d x + const."""

    ll: torch.Tensor
    l: torch.Tensor  # noqa: E741 - as in the formula
    h: torch.Tensor
    xl: torch.Tensor
    x: torch.Tensor

    def error(self, s: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
        return (s * (s * self.ll - 2.0 * (d * self.l + self.xl)) + d * (d * self.h + 2.0 * self.x)).sum(1, keepdim=True)

    def choose(
        self, scales: torch.Tensor, depths: torch.Tensor, unit: torch.Tensor, depth_unit: torch.Tensor, most: int
    ) -> tuple[torch.Tensor, ...]:
        """Codes in turn, given each other, and units for them: error, units [super-blocks, 1], codes."""
        least: tuple[torch.Tensor, ...] | None = None
        for _ in range(2):
            inverse, depth_inverse = _inverse(unit), _inverse(depth_unit)
            codes = (scales * inverse).round_().clamp_(0, most)
            s = codes * unit
            d = (s * self.l - self.x) / self.h
            depth_codes = (d * depth_inverse).round_().clamp_(0, most)
            d = depth_codes * depth_unit
            s = (self.xl + d * self.l) / self.ll.clamp(min=TINY)
            codes = (s * inverse).round_().clamp_(0, most)
            found = self.error(codes * unit, d), unit, depth_unit, codes, depth_codes
            if least is None:
                least = found
            else:
                better = found[0] < least[0]
                least = tuple(torch.where(better, a, b) for a, b in zip(found, least, strict=True))
            unit, depth_unit = self.units(codes, depth_codes)
            scales = s
        assert least is not None
        final = self.error(codes * unit, depth_codes * depth_unit), unit, depth_unit, codes, depth_codes
        better = final[0] < least[0]
        return tuple(torch.where(better, a, b) for a, b in zip(final, least, strict=True))

    def units(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The best D and M for fixed codes, as float16 values [super-blocks, 1]."""
        aa, ab, bb = (t.sum(1, keepdim=True) for t in (a * a * self.ll, a * b * self.l, b * b * self.h))
        ax, bx = (a * self.xl).sum(1, keepdim=True), -(b * self.x).sum(1, keepdim=True)
        determinant = aa * bb - ab * ab
        good = determinant > 1e-6 * aa * bb
        safe = torch.where(good, determinant, 1.0)
        # Without both to be found, the one that is there alone.
        unit = torch.where(good, (ax * bb + bx * ab) / safe, ax / aa.clamp(min=TINY)).clamp_(min=0.0)
        unit = _half(unit)
        depth = ((bx + unit * ab) / bb.clamp(min=TINY)).clamp_(min=0.0)
        return unit, _half(depth)
