# SPDX-License-Identifier: Apache-2.0
"""Quantize and dequantize in one differentiable step, the inner loop of tuning.

With `s` the scale of a group, `v` the learnt offset, `u` its unit and `Q` rounding to the grid of the element,

    x = w / s + u v        q = Q(clamp(x))        y = s q

where u is 1, or the spacing of the grid at w / s where the scale was searched (see `Settings`). Rounding is taken as
the identity (Bengio et al. 2013, arXiv:1308.3432); with m one where x lies within the range of the element, else zero,

    dy/dv = s u m        dy/dw = m        dy/ds = q - m w / s = (y - m w) / s

so the backward pass needs the weight, the offset, the scales and the result, and nothing of the weight's size is kept
for it alone. The learnt offset and the signed gradient descent that uses these derivatives: Cheng et al. 2023,
arXiv:2309.05516.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from auto_round.data_type.float8 import float8_values
from auto_round.data_type.kernels import Room, chunks, compilable
from auto_round.data_type.straight import straight_through
from auto_round_fp8.elements import Element, codes_of_, round_to_grid_, steps_at
from auto_round_fp8.scales import Factor, Settings, learnt_factor, scale_gradient, scales_of
from auto_round_fp8.tiles import CHUNK, Tiles, part

__all__ = ["decoded", "quantize_dequantize", "rounded_codes"]


def quantize_dequantize(
    tensor: torch.Tensor, v: torch.Tensor | float, max_scale: Factor, settings: Settings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a tensor to the grid: the rounded tensor, shaped and typed as it was, and the scales.

    Args:
        tensor: [..., features].
        v: learnt offset, float32 in grouped order, or one number.
        max_scale: learnt factor on the scale.

    Returns:
        the rounded tensor, and the scale of each group, float32 and rounded to the dtype it is stored in: [groups, 1],
        or [blocks down, blocks across].
    """
    tiles = Tiles(tensor.shape, settings.group_size)
    scale, amax = scales_of(tensor, tiles, learnt_factor(max_scale), settings)
    learnt = (tensor, v, max_scale)
    if torch.is_grad_enabled() and any(isinstance(t, torch.Tensor) and t.requires_grad for t in learnt):
        nothing = not isinstance(v, torch.Tensor) and not v
        nothing = nothing and not (isinstance(max_scale, torch.Tensor) and max_scale.requires_grad)
        if nothing and not isinstance(settings.group_size, tuple):
            rounded: torch.Tensor = _Straight.apply(tensor, tiles, scale, settings)
        else:
            rounded = _Fused.apply(*learnt, tiles, scale, amax, settings)
    else:
        rounded = _forward(tensor, v, tiles, scale, settings)
    return rounded, scale if len(tiles.counts) == 2 else scale.reshape(-1, 1)


def rounded_codes(
    tensor: torch.Tensor, v: torch.Tensor | float, max_scale: Factor, settings: Settings
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `quantize_dequantize` multiplies: codes of the element's dtype, shaped like the tensor, and the scales."""
    tiles = Tiles(tensor.shape, settings.group_size)
    scale, _ = scales_of(tensor, tiles, learnt_factor(max_scale), settings)
    codes = _encode(tiles.view(tensor), tiles.spread(scale), _offset(v, tiles), settings)
    return tiles.crop(codes), scale if len(tiles.counts) == 2 else scale.reshape(-1, 1)


def _offset(v: torch.Tensor | float, tiles: Tiles) -> torch.Tensor | None:
    """The learnt offset as tiles, or None if it is zero everywhere."""
    if isinstance(v, torch.Tensor):
        return tiles.learnt(v.detach())
    return tiles.learnt(tiles.room_for_learnt(torch.device("cpu")).fill_(v)) if v else None


def _position(
    groups: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor | None, settings: Settings, room: Room
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The x and u of the formula, float32, in the room; u is None where it is 1 or not needed."""
    # Widened first: a quotient of numbers of two sizes takes half as long again on a CPU.
    x = room.like(groups, "x")
    x = torch.div(groups, scale, out=x) if groups.dtype == torch.float32 else x.copy_(groups).div_(scale)
    if shift is None:
        return x, None
    shift = shift.to(x.device)
    if not settings.offset_in_steps:
        return x.add_(shift), None
    unit = steps_at(x, settings.element, room.like(groups, "powers"))
    return x.addcmul_(unit, shift), unit


def _forward(
    tensor: torch.Tensor, v: torch.Tensor | float, tiles: Tiles, scale: torch.Tensor, settings: Settings
) -> torch.Tensor:
    return tiles.crop(_round(tiles.view(tensor), tensor.dtype, tiles.spread(scale), _offset(v, tiles), settings))


@compilable
def _round(
    groups: torch.Tensor, dtype: torch.dtype, spread: torch.Tensor, shift: torch.Tensor | None, settings: Settings
) -> torch.Tensor:
    """The y of the formula, tiles."""
    out, room = torch.empty(groups.shape, dtype=dtype, device=groups.device), Room()
    for rows in chunks(groups, CHUNK):
        step = part(spread, rows)
        x, _ = _position(groups[rows], step, None if shift is None else shift[rows], settings, room)
        out[rows] = round_to_grid_(x, settings.element, room.like(x, "powers")).mul_(step)
    return out


@compilable
def _encode(groups: torch.Tensor, spread: torch.Tensor, shift: torch.Tensor | None, settings: Settings) -> torch.Tensor:
    """The q of the formula in the element's own dtype, tiles."""
    codes, room = torch.empty(groups.shape, dtype=settings.element.dtype, device=groups.device), Room()
    for rows in chunks(groups, CHUNK):
        x, _ = _position(groups[rows], part(spread, rows), None if shift is None else shift[rows], settings, room)
        codes_of_(x, settings.element, out=codes[rows])
    return codes


@compilable
def decoded(codes: torch.Tensor, spread: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The y of the formula again, of codes; tiles, in a dtype, rounded to it once.

    Args:
        codes: tiles, in the element's own dtype.
        spread: s, float32, shaped to broadcast over them.
    """
    out, room = torch.empty(codes.shape, dtype=dtype, device=codes.device), Room()
    for rows in chunks(codes, CHUNK):
        out[rows] = float8_values(codes[rows], room=room).mul_(part(spread, rows))
    return out


class _Straight(torch.autograd.Function):
    """Nothing is learnt but what the tensor itself came from; scales of groups along rows."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, tiles: Tiles, scale: torch.Tensor, settings: Settings) -> torch.Tensor:
        ctx.context = tiles, settings
        ctx.save_for_backward(tensor, scale)
        return _forward(tensor, 0.0, tiles, scale, settings)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        tiles, settings = ctx.context
        tensor, scale = ctx.saved_tensors
        groups, outer = tiles.view(tensor), tiles.view(gradients[0])
        high = (tiles.spread(scale) * settings.element.largest).expand(len(groups), 1)
        return tiles.crop(straight_through(outer, groups, high)), None, None, None


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        tensor: torch.Tensor,
        v: torch.Tensor | float,
        max_scale: Factor,
        tiles: Tiles,
        scale: torch.Tensor,
        amax: torch.Tensor,
        settings: Settings,
    ) -> torch.Tensor:
        rounded = _forward(tensor, v, tiles, scale, settings)
        given = (v, max_scale)
        ctx.context = tiles, settings, [None if isinstance(t, torch.Tensor) else t for t in given]
        ctx.save_for_backward(
            tensor, rounded, scale, amax, *(t if isinstance(t, torch.Tensor) else None for t in given)
        )
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        tiles, settings, numbers = ctx.context
        tensor, rounded, scale, amax, *saved = ctx.saved_tensors
        v, max_scale = (number if t is None else t for t, number in zip(saved, numbers, strict=True))
        wants_tensor, wants_v, wants_max = ctx.needs_input_grad[:3]
        by_v = tiles.room_for_learnt(tensor.device) if wants_v else None
        by_tensor = tiles.empty(gradients[0].dtype, tensor.device) if wants_tensor else None
        totals = _backward(
            tiles.view(gradients[0]),
            tiles.view(tensor),
            tiles.view(rounded) if wants_max else None,
            tiles.spread(scale),
            _offset(v, tiles),
            settings,
            tiles.over,
            by_tensor,
            None if by_v is None else tiles.learnt(by_v),
        )
        by_max = None
        if wants_max:
            by_scale = tiles.gather(totals) / (scale if scale.numel() == 1 else scale.reshape(tiles.counts))
            by_max = scale_gradient(by_scale, amax, max_scale, settings)
        return (
            None if by_tensor is None else tiles.crop(by_tensor),
            None if by_v is None else by_v.reshape(v.shape),
            by_max,
            *[None] * 4,
        )


@compilable
def _backward(
    outer: torch.Tensor,
    groups: torch.Tensor,
    rounded: torch.Tensor | None,
    spread: torch.Tensor,
    shift: torch.Tensor | None,
    settings: Settings,
    over: tuple[int, ...],
    by_tensor: torch.Tensor | None,
    by_offset: torch.Tensor | None,
) -> list[torch.Tensor]:
    """Write the derivatives by tensor and offset, and return that by the scale times it, for each group of each chunk.

    Args:
        outer, groups: the gradient and the tensor, tiles as all others.
        rounded: y, where the derivative by the scale is wanted.
        spread: s, of a shape that broadcasts.
        over: dimensions of a group.
        by_tensor, by_offset: where to write, if wanted.
    """
    totals, room, bound = [], Room(), _just_beyond(settings.element)
    for rows in chunks(groups, CHUNK):
        step, gradient = part(spread, rows), outer[rows].float()
        x, unit = _position(groups[rows], step, None if shift is None else shift[rows], settings, room)
        # The gradient where x lies within the range of the element, else zero. hardtanh's own backward is one
        # vectorised pass; it leaves its bounds out, and ours belong to the range.
        inner = torch.ops.aten.hardtanh_backward(gradient, x, -bound, bound)
        if by_tensor is not None:
            by_tensor[rows] = inner
        if by_offset is not None:
            torch.mul(inner, step if unit is None else unit.mul_(step), out=by_offset[rows])
        if rounded is not None:
            difference = torch.mul(gradient, rounded[rows]).addcmul_(inner, groups[rows], value=-1.0)
            totals.append(difference.sum(over, keepdim=True))
    return totals


def _just_beyond(element: Element) -> float:
    """The least float32 beyond the largest number of an element."""
    return element.largest + math.ldexp(1.0, math.frexp(element.largest)[1] - 24)
