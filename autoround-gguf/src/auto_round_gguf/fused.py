# SPDX-License-Identifier: Apache-2.0
"""Quantize and dequantize in one differentiable step, the inner loop of tuning.

The forward pass keeps one byte a weight (two for q8_0): the code, one step beyond the grid where it was clamped. With
s and m the stored scale and minimum, k one where a code lies on the grid and zero where it was clamped, t the place of
a weight on the axis of codes, `q = clamp(round(t + v))` and `y = s q + m`, rounding taken as the identity (Bengio et
al. 2013, arXiv:1308.3432):

    dy/dv = s k        dy/dw = k        dy/ds = q - k t        dy/dm = 1 - k

How s and m follow from learnt factors is left to autograd, one value per group: see `grids`.
"""

from __future__ import annotations

from typing import Any

import torch

from auto_round.data_type.kernels import chunks, compilable
from auto_round_gguf.grids import Grid
from auto_round_gguf.types import BlockType

__all__ = ["CHUNK", "dequantize", "quantize", "quantize_dequantize"]

CHUNK = 1 << 20
"""Weights worked on at a time on a CPU, so that the temporaries of one chunk stay in its caches."""

BEFORE_HALF = 0.49999997
"""The float32 before 1/2: truncating a number after moving it by this much away from zero rounds halves away."""


def place(groups: torch.Tensor, grid: Grid, rows: slice) -> torch.Tensor:
    """Where weights lie on the axis of codes, `(w - shift) / s`, float32."""
    if grid.shift is None:
        return torch.mul(groups[rows], grid.inverse[rows])
    return torch.sub(groups[rows], grid.shift[rows]).mul_(grid.inverse[rows])


def wide_codes(groups: torch.Tensor, grid: Grid, v: torch.Tensor | None, kind: BlockType, rows: slice) -> torch.Tensor:
    """Codes as whole float32 numbers, kept within one step of the grid; clamping to it gives the codes proper."""
    codes = place(groups, grid, rows)
    if v is not None:
        codes.add_(v[rows])
    if kind.rounding == "half even":
        codes.round_()
    elif kind.rounding == "half away":
        codes.add_(torch.copysign(torch.full((), BEFORE_HALF, device=codes.device), codes)).trunc_()
    else:  # codes from 0 on are what ggml rounds
        codes.add_(0.5 - kind.low).floor_()
        if kind.low:
            codes.add_(kind.low)
    codes.clamp_(kind.low - 1, kind.high + 1)
    # -0.0, which no stored code can be, becomes 0.0.
    return codes.add_(0.0)


def dequantize(codes: torch.Tensor, scale: torch.Tensor, minimum: torch.Tensor | None) -> torch.Tensor:
    """`s q + m` of float32 codes, in their place. Products are exact in float32, so that there is one rounding."""
    codes.mul_(scale)
    return codes if minimum is None else codes.add_(minimum)


@compilable
def quantize(groups: torch.Tensor, grid: Grid, v: torch.Tensor | None, kind: BlockType) -> torch.Tensor:
    """The codes of groups [groups, group size], int8 for signed types and uint8 otherwise."""
    codes = torch.empty(groups.shape, dtype=torch.int8 if kind.signed else torch.uint8, device=groups.device)
    for rows in chunks(groups, CHUNK):
        codes[rows] = wide_codes(groups, grid, v, kind, rows).clamp_(kind.low, kind.high)
    return codes


def quantize_dequantize(
    groups: torch.Tensor, v: torch.Tensor | None, grid: Grid, kind: BlockType, dtype: torch.dtype
) -> torch.Tensor:
    """Groups rounded to their grids, in `dtype`; differentiable in groups, v, and the grid's scale and minimum."""
    learnt = (groups, v, grid.scale, grid.minimum)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in learnt):
        rounded: torch.Tensor = _Fused.apply(*learnt, grid, kind, dtype)
        return rounded
    return _forward(groups, v, grid, kind, dtype, keep=False)[0]


@compilable
def _forward(
    groups: torch.Tensor, v: torch.Tensor | None, grid: Grid, kind: BlockType, dtype: torch.dtype, *, keep: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    out = torch.empty(groups.shape, dtype=dtype, device=groups.device)
    narrow = torch.int16 if kind.bits == 8 else torch.int8  # one step more than the grid has to fit
    kept = torch.empty(groups.shape, dtype=narrow, device=groups.device) if keep else None
    scale, minimum = grid.scale.detach(), None if grid.minimum is None else grid.minimum.detach()
    for rows in chunks(groups, CHUNK):
        codes = wide_codes(groups, grid, v, kind, rows)
        if kept is not None:
            kept[rows] = codes
        codes.clamp_(kind.low, kind.high)
        out[rows] = dequantize(codes, scale[rows], None if minimum is None else minimum[rows])
    return out, kept


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        groups: torch.Tensor,
        v: torch.Tensor | None,
        scale: torch.Tensor,
        minimum: torch.Tensor | None,
        grid: Grid,
        kind: BlockType,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        rounded, kept = _forward(groups, v, grid, kind, dtype, keep=True)
        ctx.save_for_backward(groups, kept, scale, grid.inverse, grid.shift)
        ctx.kind = kind
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        groups, kept, scale, inverse, shift = ctx.saved_tensors
        grid = Grid(scale, None, inverse, shift)
        found = _backward(gradients[0], groups, kept, grid, ctx.kind, ctx.needs_input_grad[:4])
        return *found, None, None, None


@compilable
def _backward(
    outer: torch.Tensor,
    groups: torch.Tensor,
    kept: torch.Tensor,
    grid: Grid,
    kind: BlockType,
    wants: tuple[bool, bool, bool, bool],
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Derivatives by weight, v, scale and minimum, shaped like those; None where not wanted."""
    wants_groups, wants_v, wants_scale, wants_minimum = wants
    scale = grid.scale
    by_groups = torch.empty_like(groups) if wants_groups else None
    by_v = torch.empty(groups.shape, dtype=torch.float32, device=groups.device) if wants_v else None
    by_scale = torch.empty_like(scale) if wants_scale else None
    by_minimum = torch.empty_like(scale) if wants_minimum else None
    alive = (grid.inverse != 0).float()  # without a scale every weight is the minimum
    for rows in chunks(groups, CHUNK):
        codes, gradient = kept[rows].float(), outer[rows].float()
        # The gradient where codes lie on the grid, else zero: hardtanh's own backward is one vectorised pass, while
        # comparing and masking with booleans costs ten times as much on a CPU.
        inner = torch.ops.aten.hardtanh_backward(gradient, codes, kind.low - 0.5, kind.high + 0.5)
        if by_minimum is not None:
            moving = inner.sum(1, keepdim=True).mul_(alive[rows])
            torch.sub(gradient.sum(1, keepdim=True), moving, out=by_minimum[rows])
        if by_scale is not None:
            moved = place(groups, grid, rows).mul_(inner)
            codes.clamp_(kind.low, kind.high).mul_(gradient).sub_(moved)
            torch.sum(codes, 1, keepdim=True, out=by_scale[rows])
        if by_groups is not None:
            by_groups[rows] = inner * alive[rows]
        if by_v is not None:
            torch.mul(inner, scale[rows], out=by_v[rows])
    return by_groups, by_v, by_scale, by_minimum
