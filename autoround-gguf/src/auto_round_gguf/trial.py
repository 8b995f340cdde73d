# SPDX-License-Identifier: Apache-2.0
"""How well grids fit some groups: weighted sums over each group, and the error they give in closed form.

Groups lie in columns, [group size, groups], so that everything that is one value per group is one contiguous vector and
sums run down the columns: on a CPU this is several times faster than rows of 16 or 32.

For codes l of a group, weights x and importance h, every grid `s l + m` on these codes has the error

    E(s, m) = sum h x^2 - 2 s sum h x l - 2 m sum h x + s^2 sum h l^2 + 2 s m sum h l + m^2 sum h,

whose least point is linear in the sums. x is taken from the group's lower end, so that little cancels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from auto_round_gguf.types import BlockType

__all__ = ["TINY", "Sums", "Trial", "importance"]

TINY = 1e-30

RIDGE = 1e-6
"""The least importance, as part of the mean: channels that calibration never reached still count a little."""


class Sums(NamedTuple):
    """Sums over the codes of each group, float32 [groups]: of h l, h l^2 and h x l."""

    l: torch.Tensor  # noqa: E741 - as in the formula
    ll: torch.Tensor
    xl: torch.Tensor


class Trial:
    """Some groups with their importance.

    Attributes:
        low, high: the ends of each group, float32 [groups]; zero lies between them where a type needs that.
        h, x, xx: sums over each group of h, h x and h x^2, x from `low` on; float32 [groups].
    """

    def __init__(self, weight: torch.Tensor, imatrix: torch.Tensor | None, kind: BlockType) -> None:
        """Take rows [rows, in_features]; importance [in_features], float32."""
        self.kind = kind
        # One copy turns rows into columns; wide first, so that the copy moves whole words.
        self._x = weight.detach().float().reshape(-1, kind.group).T.contiguous()
        self.low, self.high = self._x.amin(0), self._x.amax(0)
        if kind.super_bits is not None or kind.signed:
            self.low.clamp_(max=0.0)
            self.high.clamp_(min=0.0)
        self.extreme = torch.where(-self.low > self.high, self.low, self.high)
        self._h: torch.Tensor | None = None
        if kind.signed:
            self.shift = torch.zeros_like(self.low)
        else:
            self.shift = self.low
            self._x.sub_(self.low)
        if imatrix is None:
            self.h = torch.full_like(self.low, kind.group)
            self.x = self._x.sum(0)
        else:
            columns = imatrix.reshape(-1, kind.group).T
            self._h = columns.repeat(1, weight.shape[0])
            self.h = columns.sum(0).repeat(weight.shape[0])
        self._codes, self._product, self._weighted = (torch.empty_like(self._x) for _ in range(3))
        if self._h is not None:
            torch.mul(self._h, self._x, out=self._weighted)
            self.x = self._weighted.sum(0)
            self.xx = torch.mul(self._weighted, self._x, out=self._product).sum(0)
        else:
            self.xx = torch.mul(self._x, self._x, out=self._product).sum(0)

    def sums(self, scale: torch.Tensor, minimum: torch.Tensor | None = None) -> Sums:
        """Sums over the codes that a grid gives; float32 [groups] each."""
        inverse = 1.0 / scale
        inverse = torch.where(inverse.isfinite(), inverse, 0.0)
        if minimum is None:
            return self.sums_at(inverse, None)
        return self.sums_at(inverse, (self.shift - minimum).mul_(inverse))

    def sums_at(self, inverse: torch.Tensor, offset: torch.Tensor | None) -> Sums:
        """The same with codes `clamp(round(x inverse + offset))`, x from `shift` on."""
        codes = self._codes
        if offset is None:
            torch.mul(self._x, inverse, out=codes)
        else:
            torch.addcmul(offset, self._x, inverse, out=codes)
        codes.round_().clamp_(self.kind.low, self.kind.high)
        weighted = codes if self._h is None else torch.mul(self._h, codes, out=self._weighted)
        total = weighted.sum(0) if not self.kind.signed else self.h
        ll = torch.mul(weighted, codes, out=self._product).sum(0)
        return Sums(total, ll, torch.mul(weighted, self._x, out=self._product).sum(0))

    def error(self, sums: Sums, scale: torch.Tensor, minimum: torch.Tensor | None = None) -> torch.Tensor:
        """E of each group, float32 [groups]."""
        by_scale = scale * sums.ll - 2.0 * sums.xl
        if minimum is None:
            return torch.addcmul(self.xx, scale, by_scale)
        m = minimum - self.shift
        by_scale += 2.0 * m * sums.l
        return torch.addcmul(self.xx, scale, by_scale) + m * (m * self.h - 2.0 * self.x)

    def residual(self, scale: torch.Tensor, minimum: torch.Tensor | None = None) -> torch.Tensor:
        """E of each group over the codes last summed, term by term: what is left over of large sums is not exact."""
        rest = torch.mul(self._codes, scale, out=self._product)
        if minimum is not None:
            rest.add_(minimum - self.shift)
        rest.sub_(self._x).square_()
        return (rest if self._h is None else rest.mul_(self._h)).sum(0)


def importance(imatrix: torch.Tensor | None, kind: BlockType) -> torch.Tensor | None:
    """Importance with mean 1 and nothing at zero; None where it says nothing."""
    if imatrix is None:
        return None
    positive = torch.nan_to_num(imatrix.detach().float(), 0.0, 0.0, 0.0).clamp_(min=0.0)
    mean = positive.double().mean()
    return None if not float(mean) else (positive / mean.float()).clamp_(min=RIDGE)
