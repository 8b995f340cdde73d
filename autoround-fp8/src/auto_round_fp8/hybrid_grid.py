# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of integers on top of e4m3, differentiable in one step.

With t the scale of the tensor, Q rounding to e4m3, s the scale of a group and v the learnt offset,

    t = max(max|W| / 448, 1 / (512 448))        f = Q(clamp(w / t))
    s = -low a / 2^(b-1)  if -low a > high c,  else  -high c / 2^(b-1)        of low = min(f, 0), high = max(f, 0)
    q = clamp(round(f / s + v), -2^(b-1), 2^(b-1) - 1)        y = t (s q)

with a and c the learnt factors, and s = c init_scale where a scale was searched; s is rounded to bfloat16 and kept a
threshold away from zero. Its sign turns the longer end of the grid towards the weight of largest magnitude. Rounding is
taken as the identity; with m one where q was not clamped, dy/dv = t s m and dy/ds = (y - t m f) / s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from auto_round.data_type.kernels import chunks, compilable
from auto_round_fp8.elements import E4M3, round_to_grid_
from auto_round_fp8.scales import Factor, learnt_factor
from auto_round_fp8.search import Trial
from auto_round_fp8.tiles import CHUNK, Tiles, part

if TYPE_CHECKING:
    from auto_round.schemes import GroupSize

__all__ = [
    "Given",
    "Stages",
    "code_bounds",
    "encode_groups",
    "offset",
    "quantize_dequantize",
    "searched_scale",
    "stages_of",
]

FINE, COARSE, SPAN = 40, 12, 0.75
"""Scales tried on either side of the plain one, with its sign and with the other, up to this change of 1 / s."""

WIDER, RATIO = 8, 1.15
"""Scales beyond, each smaller than the one before by this ratio; they cut off weights that do not matter."""


@dataclass(frozen=True, eq=False)
class Given:
    """What one call is told, apart from the tensors that may be learnt; see `Float8ToInt.quant_tensor`."""

    bits: int
    group_size: GroupSize
    threshold: float = 1e-5
    tensor_min: torch.Tensor | None = None
    tensor_max: torch.Tensor | None = None
    init_scale: torch.Tensor | None = None


class Stages(NamedTuple):
    """The scales of both stages, and what the second was made of.

    Attributes:
        scale: of each group, float32 [groups] as rounded to bfloat16.
        tensor_scale: float32 scalar.
        low, high: the range of each group after the first stage, float32 [groups].
    """

    scale: torch.Tensor
    tensor_scale: torch.Tensor
    low: torch.Tensor | None = None
    high: torch.Tensor | None = None


def code_bounds(bits: int) -> tuple[int, int]:
    """The least and the largest code."""
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def stages_of(tensor: torch.Tensor, tiles: Tiles, min_scale: Factor, max_scale: Factor, given: Given) -> Stages:
    """Both scales of a tensor."""
    low, high = _range(tensor, tiles, given)
    largest = torch.maximum(-low.min(), high.max())
    tensor_scale = (largest / E4M3.largest).clamp(min=E4M3.least_scale)
    # Rounding keeps the order, so that the range of what is rounded is the range, rounded.
    low = round_to_grid_(low / tensor_scale, E4M3)
    high = round_to_grid_(high / tensor_scale, E4M3)
    exact = _exact(low, high, _flat(min_scale), _flat(max_scale), given)
    narrow = exact.to(torch.bfloat16).float()
    least = given.threshold
    scale = torch.where(narrow < 0, narrow.clamp(max=-least), narrow.clamp(min=least)).to(torch.bfloat16).float()
    return Stages(scale, tensor_scale, low, high)


def _range(tensor: torch.Tensor, tiles: Tiles, given: Given) -> tuple[torch.Tensor, torch.Tensor]:
    if given.tensor_min is not None and given.tensor_max is not None:
        return given.tensor_min.detach().float().reshape(-1), given.tensor_max.detach().float().reshape(-1)
    groups = tiles.view(tensor)
    wide = groups.reshape(tiles.counts[0], -1).float()
    return wide.amin(-1).clamp_(max=0.0), wide.amax(-1).clamp_(min=0.0)


def _flat(factor: Factor) -> Factor:
    value = learnt_factor(factor)
    return value.reshape(-1) if isinstance(value, torch.Tensor) else value


def _exact(low: torch.Tensor, high: torch.Tensor, min_scale: Factor, max_scale: Factor, given: Given) -> torch.Tensor:
    if given.init_scale is not None:
        return given.init_scale.detach().float().reshape(-1) * max_scale
    below, above = -low * min_scale, high * max_scale
    return torch.where(below > above, below, -above) / (1 << (given.bits - 1))


def offset(v: torch.Tensor | float, tiles: Tiles) -> torch.Tensor | None:
    """The learnt offset as tiles, or None if it is zero everywhere."""
    if isinstance(v, torch.Tensor):
        return tiles.learnt(v.detach())
    return tiles.learnt(tiles.room_for_learnt(torch.device("cpu")).fill_(v)) if v else None


def _chunk_codes(
    groups: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor | None, tensor_scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes before they are clamped, and the first stage they were made of; float32."""
    first = round_to_grid_(torch.div(groups.float(), tensor_scale), E4M3)
    codes = torch.div(first, scale)
    if shift is not None:
        codes.add_(shift.to(codes.device))
    return codes.round_().add_(0.0), first  # adding zero turns -0.0, which no stored code can be, into 0.0


def quantize_dequantize(
    tensor: torch.Tensor, v: torch.Tensor | float, min_scale: Factor, max_scale: Factor, given: Given
) -> tuple[torch.Tensor, Stages]:
    """Round a tensor to the grid: the rounded tensor, shaped and typed as it was, and both scales."""
    tiles = Tiles(tensor.shape, given.group_size)
    stages = stages_of(tensor, tiles, min_scale, max_scale, given)
    learnt = (tensor, v, min_scale, max_scale)
    if torch.is_grad_enabled() and any(isinstance(t, torch.Tensor) and t.requires_grad for t in learnt):
        rounded: torch.Tensor = _Fused.apply(*learnt, tiles, stages, given)
    else:
        rounded = _forward(tensor, v, tiles, stages, given)
    return rounded, stages


def _forward(tensor: torch.Tensor, v: torch.Tensor | float, tiles: Tiles, stages: Stages, given: Given) -> torch.Tensor:
    groups, spread, bounds = tiles.view(tensor), tiles.spread(stages.scale), code_bounds(given.bits)
    return tiles.crop(_round(groups, tensor.dtype, spread, offset(v, tiles), stages.tensor_scale, bounds))


@compilable
def _round(
    groups: torch.Tensor,
    dtype: torch.dtype,
    spread: torch.Tensor,
    shift: torch.Tensor | None,
    tensor_scale: torch.Tensor,
    bounds: tuple[int, int],
) -> torch.Tensor:
    """Tiles, rounded."""
    out = torch.empty(groups.shape, dtype=dtype, device=groups.device)
    for rows in chunks(groups, CHUNK):
        step = part(spread, rows)
        codes, _ = _chunk_codes(groups[rows], step, None if shift is None else shift[rows], tensor_scale)
        out[rows] = codes.clamp_(*bounds).mul_(step).mul_(tensor_scale)
    return out


@compilable
def encode_groups(
    groups: torch.Tensor,
    shift: torch.Tensor | None,
    spread: torch.Tensor,
    tensor_scale: torch.Tensor,
    bounds: tuple[int, int],
) -> torch.Tensor:
    """The q of the formula, int8, tiles.

    Args:
        groups: tiles.
        shift: v as tiles, or None for zero.
        spread: s, of a shape that broadcasts.
        tensor_scale: t, float32 scalar.
        bounds: the least and the largest code.
    """
    codes = torch.empty(groups.shape, dtype=torch.int8, device=groups.device)
    for rows in chunks(groups, CHUNK):
        shifted = None if shift is None else shift[rows]
        codes[rows] = _chunk_codes(groups[rows], part(spread, rows), shifted, tensor_scale)[0].clamp_(*bounds)
    return codes


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        tensor: torch.Tensor,
        v: torch.Tensor | float,
        min_scale: Factor,
        max_scale: Factor,
        tiles: Tiles,
        stages: Stages,
        given: Given,
    ) -> torch.Tensor:
        rounded = _forward(tensor, v, tiles, stages, given)
        values = (v, min_scale, max_scale)
        ctx.context = tiles, stages, given, [None if isinstance(t, torch.Tensor) else t for t in values]
        ctx.save_for_backward(tensor, rounded, *(t if isinstance(t, torch.Tensor) else None for t in values))
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        tiles, stages, given, numbers = ctx.context
        tensor, rounded, *saved = ctx.saved_tensors
        v, min_scale, max_scale = (n if t is None else t for t, n in zip(saved, numbers, strict=True))
        wants_tensor, wants_v, wants_min, wants_max = ctx.needs_input_grad[:4]
        by_v = tiles.room_for_learnt(tensor.device) if wants_v else None
        by_tensor = tiles.empty(gradients[0].dtype, tensor.device) if wants_tensor else None
        totals = _backward(
            tiles.view(gradients[0]),
            tiles.view(tensor),
            tiles.view(rounded) if wants_min or wants_max else None,
            tiles.spread(stages.scale),
            offset(v, tiles),
            stages.tensor_scale,
            code_bounds(given.bits),
            tiles.over,
            by_tensor,
            None if by_v is None else tiles.learnt(by_v),
        )
        by_min = by_max = None
        if wants_min or wants_max:
            by_scale = tiles.gather(totals) / stages.scale
            by_low, by_high = _factor_gradients(by_scale, stages, min_scale, max_scale, given)
            by_min = _like(by_low, min_scale) if wants_min else None
            by_max = _like(by_high, max_scale) if wants_max else None
        return (
            None if by_tensor is None else tiles.crop(by_tensor),
            None if by_v is None else by_v.reshape(v.shape),
            by_min,
            by_max,
            *[None] * 3,
        )


@compilable
def _backward(
    outer: torch.Tensor,
    groups: torch.Tensor,
    rounded: torch.Tensor | None,
    spread: torch.Tensor,
    shift: torch.Tensor | None,
    tensor_scale: torch.Tensor,
    bounds: tuple[int, int],
    over: tuple[int, ...],
    by_tensor: torch.Tensor | None,
    by_offset: torch.Tensor | None,
) -> list[torch.Tensor]:
    """The same as `fused._backward`, through both stages."""
    totals, (low, high) = [], bounds
    for rows in chunks(groups, CHUNK):
        step, gradient = part(spread, rows), outer[rows].float()
        codes, first = _chunk_codes(groups[rows], step, None if shift is None else shift[rows], tensor_scale)
        inner = torch.ops.aten.hardtanh_backward(gradient, codes, low - 0.5, high + 0.5)
        if by_tensor is not None:
            by_tensor[rows] = inner
        if by_offset is not None:
            torch.mul(inner, step * tensor_scale, out=by_offset[rows])
        if rounded is not None:
            scaled = inner.mul_(first).mul_(tensor_scale)
            totals.append(torch.mul(gradient, rounded[rows]).sub_(scaled).sum(over, keepdim=True))
    return totals


def _factor_gradients(
    by_scale: torch.Tensor, stages: Stages, min_scale: Factor, max_scale: Factor, given: Given
) -> tuple[torch.Tensor, torch.Tensor]:
    assert stages.low is not None
    assert stages.high is not None
    low, high, a, c = stages.low, stages.high, _flat(min_scale), _flat(max_scale)
    moves = _exact(low, high, a, c, given).to(torch.bfloat16).abs() >= given.threshold
    by_scale = by_scale * moves
    if given.init_scale is not None:
        return torch.zeros_like(by_scale), by_scale * given.init_scale.detach().float().reshape(-1)
    from_low = (-low * a > high * c).float()
    per_code = by_scale / -(1 << (given.bits - 1))
    return per_code * low * from_low, per_code * high * (1.0 - from_low)


def _like(gradient: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    summed = gradient if factor.numel() == gradient.numel() else gradient.sum()
    return summed.reshape(factor.shape).to(factor.dtype)


def searched_scale(weight: torch.Tensor, imatrix: torch.Tensor | None, given: Given) -> torch.Tensor:
    """The scale of each group that fits it best, float32 [groups, 1], as rounded to bfloat16."""
    tiles, weight = Tiles(weight.shape, given.group_size), weight.detach()
    stages = stages_of(weight, tiles, 1.0, 1.0, given)
    target = weight.float() / stages.tensor_scale
    low, high = code_bounds(given.bits)

    def store(scale: torch.Tensor) -> torch.Tensor:
        narrow, least = scale.to(torch.bfloat16).float(), given.threshold
        kept = torch.where(narrow < 0, narrow.clamp(max=-least), narrow.clamp(min=least))
        return kept.to(torch.bfloat16).float()

    def loaded(product: torch.Tensor) -> torch.Tensor:
        return product.mul_(stages.tensor_scale).to(weight.dtype).float().div_(stages.tensor_scale)

    first = round_to_grid_(target.clone(), E4M3)
    trial = Trial(tiles, first, target, imatrix, lambda x: x.round_().clamp_(low, high), loaded)
    plain = stages.scale
    parts = [1.0 + SPAN * i / FINE for i in range(-FINE, FINE + 1)]
    wider = [(1.0 + SPAN) * RATIO**i for i in range(1, WIDER + 1)]
    turned = [-(1.0 + SPAN * i / COARSE) for i in range(-COARSE, COARSE + 1)] + [-p for p in wider]
    # With the other sign the extreme weight lies on the shorter end, which is one step nearer.
    candidates = [plain / p for p in parts + wider] + [plain * -low / high / p for p in turned]
    return trial.best(plain, candidates, store).reshape(-1, 1)
