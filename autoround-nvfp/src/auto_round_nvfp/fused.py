# SPDX-License-Identifier: Apache-2.0
"""Quantize and dequantize in one differentiable step, the inner loop of tuning.

The forward pass keeps one byte a weight: twice the element, one more (or less) where it was clamped. The backward pass
needs nothing else of the weight's size but the weight. With the letters of `blocks`, `m` one where `W / d + v` lies
within [-6, 6] and zero elsewhere, rounding taken as the identity (Bengio et al. 2013, arXiv:1308.3432):

    dW'/dv = d m        dW'/dW = m        dW'/dd = q - m W / d        dd/dc = A / 6, or the searched scale over G

and where a block's own largest magnitude made its scale, dW'/dd is carried on to that element.

The learnt offset and the signed gradient descent that uses these derivatives: Cheng et al. 2023, arXiv:2309.05516.
"""

from __future__ import annotations

from typing import Any

import torch

from auto_round.data_type.kernels import chunks, compilable
from auto_round_nvfp.blocks import CHUNK, BlockScale, Factor, Grouping, Scales, Settings, factor
from auto_round_nvfp.minifloat import LARGEST_E2M1
from auto_round_nvfp.plain import Straight, round_blocks
from auto_round_nvfp.rounding import round_groups

__all__ = ["offset", "quantize_dequantize"]


def quantize_dequantize(
    block_scale: BlockScale,
    tensor: torch.Tensor,
    v: torch.Tensor | float,
    max_scale: Factor,
    settings: Settings,
) -> tuple[torch.Tensor, Scales]:
    """Round a tensor: the rounded tensor, shaped and typed as it was, and its scales."""
    grouping = Grouping(tensor, settings.group_size)
    learnt = (tensor, v, max_scale)
    learns = torch.is_grad_enabled() and any(isinstance(t, torch.Tensor) and t.requires_grad for t in learnt)
    constant = not (learns and isinstance(max_scale, torch.Tensor) and max_scale.requires_grad)
    if constant and not isinstance(v, torch.Tensor) and not v:
        with torch.no_grad():
            plain, scales = round_blocks(block_scale, grouping, max_scale, settings)
        return Straight.apply(tensor, grouping, plain, scales) if learns else plain, scales
    scales = block_scale.scales(grouping.groups, max_scale, settings)
    if learns:
        rounded: torch.Tensor = _Fused.apply(*learnt, grouping, scales)
    else:
        rounded, _ = _forward(grouping, scales, v, keep=False)
    return rounded, scales


def offset(v: torch.Tensor | float, groups: torch.Tensor) -> torch.Tensor | None:
    """The learnt offset shaped like the blocks, or None if it is zero everywhere."""
    if isinstance(v, torch.Tensor):
        return v.detach().reshape(groups.shape)
    return torch.full(groups.shape, v, dtype=torch.float32, device=groups.device) if v else None


def _forward(
    grouping: Grouping, scales: Scales, v: torch.Tensor | float, *, keep: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    groups = grouping.groups
    shift = offset(v, groups)
    out, kept = round_groups(groups, grouping.dtype, shift, scales.step, scales.divisor, keep=keep)
    return grouping.revert(out), kept


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        tensor: torch.Tensor,
        v: torch.Tensor | float,
        max_scale: Factor,
        grouping: Grouping,
        scales: Scales,
    ) -> torch.Tensor:
        rounded, kept = _forward(grouping, scales, v, keep=True)
        ctx.context = grouping, scales
        ctx.v_shape = v.shape if isinstance(v, torch.Tensor) else None
        ctx.max_scale = max_scale.detach() if isinstance(max_scale, torch.Tensor) else max_scale
        ctx.save_for_backward(kept)
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grouping, scales = ctx.context
        (kept,) = ctx.saved_tensors
        wants_weight, wants_v, wants_max = ctx.needs_input_grad[:3]
        outer = Grouping(gradients[0], grouping.group_size)
        carries = wants_weight and scales.largest is not None
        by_v, by_weight, by_step = _backward(
            outer.groups, grouping.groups, kept, scales.step, scales.divisor, wants_v, wants_weight,
            wants_step=wants_max or carries,
        )  # fmt: skip
        if by_weight is not None and scales.largest is not None:
            by_size = by_step * _moves(scales) * factor(ctx.max_scale)
            _carry_to_largest(by_weight, by_size, grouping.groups, scales.largest)
        by_max = None
        if wants_max:
            slopes = by_step * scales.slope
            summed = slopes if ctx.max_scale.numel() == slopes.numel() else slopes.sum()
            by_max = summed.reshape(ctx.max_scale.shape).to(ctx.max_scale.dtype)
        return (
            None if by_weight is None else outer.revert(by_weight),
            None if by_v is None else by_v.reshape(ctx.v_shape),
            by_max,
            None,
            None,
        )


def _moves(scales: Scales) -> torch.Tensor:
    return (scales.slope != 0).float()


def _carry_to_largest(
    by_weight: torch.Tensor, by_size: torch.Tensor, groups: torch.Tensor, largest: torch.Tensor
) -> None:
    """Add to the gradient of each block's largest elements what their size does through the scale, d = A c / 6.

    Equal ones share it.
    """
    for rows in chunks(groups, CHUNK):
        wide = groups[rows].float()
        chosen = (wide.abs() == largest[rows].unsqueeze(-1)).float()
        share = by_size[rows].unsqueeze(-1) / (LARGEST_E2M1 * chosen.sum(-1, keepdim=True))
        by_weight[rows] += chosen.copysign_(wide).mul_(share)


@compilable
def _backward(
    outer: torch.Tensor,
    groups: torch.Tensor,
    kept: torch.Tensor,
    step: torch.Tensor,
    divisor: torch.Tensor,
    wants_v: bool,
    wants_weight: bool,
    *,
    wants_step: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor]:
    """Derivatives by v and weight, [blocks, block size], and by the step d, float32 [blocks], where wanted."""
    end = 2 * LARGEST_E2M1
    by_v = torch.empty(groups.shape, dtype=torch.float32, device=groups.device) if wants_v else None
    by_weight = torch.empty_like(outer) if wants_weight else None
    by_step = torch.empty(groups.shape[0], dtype=torch.float32, device=groups.device)
    for rows in chunks(groups, CHUNK):
        twice, gradient = kept[rows].float(), outer[rows].float()
        # The gradient where nothing was clamped, else zero: hardtanh's own backward is one vectorised pass, while
        # comparing and masking with booleans costs ten times as much on a CPU.
        inner = torch.ops.aten.hardtanh_backward(gradient, twice, -end - 0.5, end + 0.5)
        if wants_step:
            total = twice.clamp_(-end, end).mul_(gradient).sum(-1).div_(2.0)
            total -= twice.copy_(groups[rows]).mul_(inner).sum(-1).div_(divisor[rows, 0])
            by_step[rows] = total
        if by_weight is not None:
            by_weight[rows] = inner
        if by_v is not None:
            torch.mul(inner, step[rows], out=by_v[rows])
    return by_v, by_weight, by_step
