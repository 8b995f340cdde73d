# SPDX-License-Identifier: Apache-2.0
"""Quantize and dequantize in one differentiable step, the inner loop of tuning.

The forward pass keeps one byte a weight (two at seven bits and more): the code, one step beyond the grid where it was
clamped. The backward pass needs nothing else of the weight's size but the weight. With `s` the scale, `z` the zero
point, `m` one where a code lies on the grid and zero where it was clamped, `q = clamp(round(w / s + v) + z)` and
`y = s (q - z)`, rounding taken as the identity (Bengio et al. 2013, arXiv:1308.3432):

    dy/dv = s m        dy/dw = m        dy/ds = (q - z) - m w / s        dy/dz = s (m - 1)

The learnt offset and the signed gradient descent that uses these derivatives: Cheng et al. 2023, arXiv:2309.05516.
"""

from __future__ import annotations

from typing import Any

import torch

from auto_round.data_type.kernels import chunks, compilable
from auto_round_int.grid import CHUNK, Factor, Grid, Grouping, Scales, Settings, dequantize, wide_codes, widened

__all__ = ["encode_groups", "offset", "quantize_dequantize"]


def quantize_dequantize(
    grid: Grid,
    tensor: torch.Tensor,
    v: torch.Tensor | float,
    min_scale: Factor,
    max_scale: Factor,
    settings: Settings,
) -> tuple[torch.Tensor, Scales]:
    """Round a tensor to a grid: the rounded tensor, shaped and typed as it was, and the grid of each group."""
    grouping = Grouping(tensor, settings.group_size)
    scales = grid.scales(grouping.groups, min_scale, max_scale, settings).for_groups(len(grouping.groups))
    learnt = (tensor, v, min_scale, max_scale)
    if torch.is_grad_enabled() and any(isinstance(t, torch.Tensor) and t.requires_grad for t in learnt):
        rounded: torch.Tensor = _Fused.apply(*learnt, grid, grouping, scales, settings)
    else:
        rounded, _ = _forward(grid, grouping, scales, v, settings, keep=False)
    return rounded, scales


def offset(v: torch.Tensor | float, groups: torch.Tensor) -> torch.Tensor | None:
    """The learnt offset shaped like the groups, or None if it is zero everywhere."""
    if isinstance(v, torch.Tensor):
        return v.detach().reshape(groups.shape)
    return torch.full(groups.shape, v, dtype=torch.float32, device=groups.device) if v else None


def _forward(
    grid: Grid, grouping: Grouping, scales: Scales, v: torch.Tensor | float, settings: Settings, *, keep: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    shift = offset(v, grouping.groups)
    scale, bounds = scales.scale.float(), grid.bounds(settings.bits)
    out, kept = _round(grouping.groups, grouping.dtype, shift, scale, scales.zero_point, bounds, keep=keep)
    return grouping.revert(out), kept


@compilable
def _round(
    groups: torch.Tensor,
    dtype: torch.dtype,
    shift: torch.Tensor | None,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    bounds: tuple[int, int],
    *,
    keep: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    low, high = bounds
    out = torch.empty(groups.shape, dtype=dtype, device=groups.device)
    fits = torch.iinfo(torch.int8).min < low and high < torch.iinfo(torch.int8).max  # and one step more
    narrow = torch.int8 if fits else torch.int16
    kept = torch.empty(groups.shape, dtype=narrow, device=groups.device) if keep else None
    for rows, wide in widened(groups):
        zero = None if zero_point is None else zero_point[rows]
        moved = None if shift is None else shift[rows]
        codes = wide_codes(wide, scale[rows], zero, moved, low, high, beyond=int(keep))
        if kept is not None:
            kept[rows] = codes
            codes.clamp_(low, high)
        out[rows] = dequantize(codes, scale[rows], zero)
    return out, kept


@compilable
def encode_groups(
    groups: torch.Tensor,
    shift: torch.Tensor | None,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    bounds: tuple[int, int],
) -> torch.Tensor:
    """The codes of groups [groups, group size]: uint8, or int8 where they have a sign.

    Args:
        shift: v, float32, shaped like the groups, or None for zero.
        scale, zero_point: float32 [groups, 1].
        bounds: the least and the largest code.
    """
    low, high = bounds
    codes = torch.empty(groups.shape, dtype=torch.uint8 if low == 0 else torch.int8, device=groups.device)
    for rows, wide in widened(groups):
        zero = None if zero_point is None else zero_point[rows]
        moved = None if shift is None else shift[rows]
        codes[rows] = wide_codes(wide, scale[rows], zero, moved, low, high)
    return codes


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        tensor: torch.Tensor,
        v: torch.Tensor | float,
        min_scale: Factor,
        max_scale: Factor,
        grid: Grid,
        grouping: Grouping,
        scales: Scales,
        settings: Settings,
    ) -> torch.Tensor:
        rounded, kept = _forward(grid, grouping, scales, v, settings, keep=True)
        ctx.context = grid, grouping, scales, settings
        ctx.shapes = [t.shape if isinstance(t, torch.Tensor) else None for t in (v, min_scale, max_scale)]
        ctx.save_for_backward(kept, *(t if isinstance(t, torch.Tensor) else None for t in (min_scale, max_scale)))
        ctx.factors = [None if isinstance(t, torch.Tensor) else t for t in (min_scale, max_scale)]
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grid, grouping, scales, settings = ctx.context
        kept, *saved = ctx.saved_tensors
        min_scale, max_scale = (given if t is None else t for t, given in zip(saved, ctx.factors, strict=True))
        wants_weight, wants_v, wants_min, wants_max = ctx.needs_input_grad[:4]
        outer = Grouping(gradients[0], settings.group_size)
        wants = wants_v, wants_weight, wants_min or wants_max
        by_v, by_weight, by_scale, by_zero = _backward(
            outer.groups,
            grouping.groups,
            kept,
            scales.scale.float(),
            scales.zero_point,
            grid.bounds(settings.bits),
            wants,
        )
        by_min = by_max = None
        if wants_min or wants_max:
            found = grid.factor_gradients(scales, min_scale, max_scale, settings, by_scale, by_zero)
            by_min, by_max = (
                _like(g, t) if wanted else None
                for g, t, wanted in zip(found, (min_scale, max_scale), (wants_min, wants_max), strict=True)
            )
        return (
            None if by_weight is None else outer.revert(by_weight),
            None if by_v is None else by_v.reshape(ctx.shapes[0]),
            by_min,
            by_max,
            *[None] * 4,
        )


def _like(gradient: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """A gradient [groups] in the shape of its factor, summed where one factor serves all groups."""
    summed = gradient if factor.numel() == gradient.numel() else gradient.sum()
    return summed.reshape(factor.shape).to(factor.dtype)


@compilable
def _backward(
    outer: torch.Tensor,
    groups: torch.Tensor,
    kept: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    bounds: tuple[int, int],
    wants: tuple[bool, bool, bool],
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """Derivatives by v and weight, [groups, group size], and by scale and zero point, float32 [groups].

    Args:
        wants: whether those by v, weight, and scale and zero point are needed; the last are zeros where they are not.
    """
    low, high = bounds
    wants_v, wants_weight, wants_scale = wants
    by_v = torch.empty(groups.shape, dtype=torch.float32, device=groups.device) if wants_v else None
    by_weight = torch.empty_like(outer) if wants_weight else None
    by_scale = torch.zeros(groups.shape[0], dtype=torch.float32, device=groups.device)
    by_zero = torch.zeros_like(by_scale)
    for rows in chunks(groups, CHUNK):
        codes, gradient, step = kept[rows].float(), outer[rows].float(), scale[rows]
        inner = torch.empty_like(codes) if by_v is None else by_v[rows]
        # The gradient where codes lie on the grid, else zero: hardtanh's own backward is one vectorised pass, while
        # comparing and masking with booleans costs ten times as much on a CPU.
        torch.ops.aten.hardtanh_backward(gradient, codes, low - 0.5, high + 0.5, grad_input=inner)
        if wants_scale:
            total = codes.clamp_(low, high).mul_(gradient).sum(-1)
            total -= codes.copy_(groups[rows]).mul_(inner).sum(-1).div_(step[:, 0])
            if zero_point is not None:
                everywhere = gradient.sum(-1)
                total -= everywhere * zero_point[rows, 0]
                by_zero[rows] = inner.sum(-1).sub_(everywhere).mul_(step[:, 0])
            by_scale[rows] = total
        if by_weight is not None:
            by_weight[rows] = inner
        if wants_v:
            inner.mul_(step)
    return by_v, by_weight, by_scale, by_zero
