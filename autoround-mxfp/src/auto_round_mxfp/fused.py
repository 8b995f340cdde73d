# SPDX-License-Identifier: Apache-2.0
"""Quantize and dequantize in one differentiable step, the inner loop of tuning.

Rounding is the identity to a gradient (Bengio et al. 2013, arXiv:1308.3432), and so is the floor that takes the
exponent of an element out of it. Where a value x is normal its rounded form is 2^p round(x / 2^p), p = floor(log2 x)
differentiated like log2 x: the two contributions through 2^p leave the slope `r = q / x`. Below the smallest normal
value p is constant and r = 1; where x was cut off r = 0. With W the weight, S the shared exponent, c the learnt factor
on the largest magnitude, x = W / 2^S + v and y = 2^S q,

    dy/dv = 2^S r        dy/dW = r        c dy/dc = y - r W

the last because 2^S is c times a constant to a gradient, its floor being ignored like every other. A block that stays
at the end of the range of E8M0, or is zero, has no derivative by c. The dependence of S on W is left out, as it is for
every data type whose range is given: where S was learnt or searched it does not come from W at all.

Nothing of the size of the weight is kept for the backward pass but the weight, v and the result, all of which exist.
"""

from __future__ import annotations

from typing import Any

import torch

from auto_round.data_type.kernels import chunks, compilable
from auto_round.data_type.straight import straight_through
from auto_round_mxfp.blocks import CHUNK, Factor, Grouping, Settings
from auto_round_mxfp.elements import Element
from auto_round_mxfp.exponents import LIMIT, exponent_of, power_of_two, wide_exponents
from auto_round_mxfp.kernels import round_blocks

__all__ = ["offset", "quantize_dequantize"]


def quantize_dequantize(
    tensor: torch.Tensor, v: torch.Tensor | float, max_scale: Factor, settings: Settings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a tensor to its format: the rounded tensor, shaped and typed as it was, and int32 exponents [groups]."""
    learnt = (tensor, v, max_scale)
    if torch.is_grad_enabled() and any(isinstance(t, torch.Tensor) and t.requires_grad for t in learnt):
        if not isinstance(v, torch.Tensor) and not v and not _learns(max_scale):
            passed: tuple[torch.Tensor, torch.Tensor] = _Straight.apply(tensor, max_scale, settings)
            return passed
        found: tuple[torch.Tensor, torch.Tensor] = _Fused.apply(*learnt, settings)
        return found
    return _forward(Grouping(tensor, settings.group_size), v, max_scale, settings)[:2]


def _forward(
    grouping: Grouping, v: torch.Tensor | float, max_scale: Factor, settings: Settings
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The rounded tensor, and exponents and largest magnitudes of its blocks."""
    groups = grouping.groups
    rounded, exponents, largest = round_blocks(groups, offset(v, groups), max_scale, settings)
    return grouping.revert(rounded).to(grouping.dtype), exponents, largest


def offset(v: torch.Tensor | float, groups: torch.Tensor) -> torch.Tensor | float:
    """The learnt offset shaped like the groups, or the one number that it is."""
    return v.detach().reshape(groups.shape) if isinstance(v, torch.Tensor) else v


def _learns(factor: Factor) -> bool:
    return isinstance(factor, torch.Tensor) and factor.requires_grad


class _Straight(torch.autograd.Function):
    """Nothing is learnt but what the tensor itself came from."""

    @staticmethod
    def forward(
        ctx: Any, tensor: torch.Tensor, max_scale: Factor, settings: Settings
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rounded, exponents, _ = _forward(Grouping(tensor, settings.group_size), 0.0, max_scale, settings)
        ctx.settings = settings
        ctx.save_for_backward(tensor, exponents)
        ctx.mark_non_differentiable(exponents)
        return rounded, exponents

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        settings: Settings = ctx.settings
        tensor, exponents = ctx.saved_tensors
        outer, inner = Grouping(gradients[0], settings.group_size), Grouping(tensor, settings.group_size)
        high = power_of_two(exponents).unsqueeze(-1) * settings.element.max
        return outer.revert(straight_through(outer.groups, inner.groups, high)), None, None


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, tensor: torch.Tensor, v: torch.Tensor | float, max_scale: Factor, settings: Settings
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rounded, exponents, largest = _forward(Grouping(tensor, settings.group_size), v, max_scale, settings)
        # Elements times their scale need eight bits of mantissa at most, so both dtypes hold them; float16 does not.
        kept = rounded if rounded.dtype in (torch.float32, torch.bfloat16) else rounded.float()
        ctx.settings, ctx.numbers = settings, [None if isinstance(t, torch.Tensor) else t for t in (v, max_scale)]
        tensors = (t if isinstance(t, torch.Tensor) else None for t in (v, max_scale))
        ctx.save_for_backward(tensor, kept, exponents, largest, *tensors)
        ctx.mark_non_differentiable(exponents)
        return rounded, exponents

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        settings: Settings = ctx.settings
        tensor, kept, exponents, largest, *saved = ctx.saved_tensors
        v, max_scale = (given if t is None else t for t, given in zip(saved, ctx.numbers, strict=True))
        wants_weight, wants_v, wants_max = ctx.needs_input_grad[:3]
        outer, inner = Grouping(gradients[0], settings.group_size), Grouping(tensor, settings.group_size)
        rounded = Grouping(kept, settings.group_size).groups
        scales, inverses = (power_of_two(of).unsqueeze(-1) for of in (exponents, -exponents))
        by_weight, by_v, by_scale = _backward(
            outer.groups,
            inner.groups,
            rounded,
            scales,
            inverses,
            offset(v, inner.groups),
            settings.element,
            ctx.needs_input_grad[:3],
        )
        by_max = None
        if wants_max:
            factor = max_scale.detach().float().reshape(-1)
            found = by_scale / factor * _moves(largest * factor, largest, settings)
            found = torch.where(largest * factor > 0, found, 0.0)
            found = found if max_scale.numel() == found.numel() else found.sum()
            by_max = found.reshape(max_scale.shape).to(max_scale.dtype)
        return (
            outer.revert(by_weight).to(tensor.dtype) if wants_weight else None,
            by_v.reshape(v.shape) if wants_v else None,
            by_max,
            None,
        )


def _moves(scaled: torch.Tensor, largest: torch.Tensor, settings: Settings) -> torch.Tensor:
    """One where a shared exponent follows its block, zero where the end of the range holds it: float32 [groups]."""
    wide = wide_exponents(scaled, settings.element, settings.rule)
    if settings.init_scale is not None:
        wide -= wide_exponents(largest, settings.element, settings.rule)
        wide += exponent_of(settings.init_scale).reshape(-1)
    return (wide.abs() <= LIMIT).float()


@compilable
def _backward(
    outer: torch.Tensor,
    groups: torch.Tensor,
    rounded: torch.Tensor,
    scales: torch.Tensor,
    inverses: torch.Tensor,
    shift: torch.Tensor | float,
    element: Element,
    wants: tuple[bool, bool, bool],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Derivatives by weight and v, [groups, group size], and c dy/dc, float32 [groups]; empty where not wanted."""
    wants_weight, wants_v, wants_max = wants
    nothing = torch.empty(0, device=groups.device)
    by_weight = torch.empty_like(outer) if wants_weight else nothing
    by_v = torch.empty(groups.shape, dtype=torch.float32, device=groups.device) if wants_v else nothing
    by_scale = torch.empty(len(groups), dtype=torch.float32, device=groups.device) if wants_max else nothing
    limit = element.max * (1 + 2**-23)  # hardtanh's derivative is zero at its ends, clamp's is one
    smallest = 2.0**element.smallest_exponent
    room: list[torch.Tensor] = []
    for rows in chunks(groups, CHUNK):
        if not room:  # made once: fresh memory would cost more than what is done in it
            room = [torch.empty(rows.stop, groups.shape[1], device=groups.device) for _ in range(3)]
        x, ratio, slope = (buffer[: rows.stop - rows.start] for buffer in room)
        scale, inverse = scales[rows], inverses[rows]
        weight, gradient, values = groups[rows].float(), outer[rows].float(), rounded[rows].float()
        torch.mul(weight, inverse, out=x).add_(shift[rows] if isinstance(shift, torch.Tensor) else shift)
        # The gradient where nothing was cut off, else zero: one vectorised pass, while comparing and masking with
        # booleans costs ten times as much on a CPU.
        torch.ops.aten.hardtanh_backward(gradient, x, -limit, limit, grad_input=slope)
        if not element.whole:
            # Magnitudes kept above the smallest normal value: their ratio is q / x above it and one below.
            torch.mul(values, inverse, out=ratio).abs_().clamp_(min=smallest)
            slope.mul_(ratio).div_(x.abs_().clamp_(min=smallest))
        if wants_max:
            total = torch.mul(values, gradient, out=x).sum(-1)
            by_scale[rows] = total.sub_(torch.mul(weight, slope, out=x).sum(-1))
        if wants_weight:
            by_weight[rows] = slope
        if wants_v:
            torch.mul(slope, scale, out=by_v[rows])
    return by_weight, by_v, by_scale
