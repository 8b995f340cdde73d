# SPDX-License-Identifier: Apache-2.0
"""Rounding where nothing is learnt: plain rounding of weights, and activations in every step of tuning.

The arithmetic of `blocks`, bit for bit, in memory that is made once, and with the gradient that goes straight through.
"""

from __future__ import annotations

from typing import Any

import torch

from auto_round.data_type.straight import straight_through
from auto_round_nvfp.blocks import Grouping, Scales, scaled
from auto_round_nvfp.minifloat import LARGEST_E2M1, round_e2m1_

__all__ = ["Straight", "round_blocks"]

CHUNK = 1 << 19
"""Elements worked on at a time on a CPU: what is made of them stays in a shared cache, and calls are few."""

NEVER_ROUNDS_UP = 6.99
"""Below seven, numbers round to six at most, cut off or not."""


def round_blocks(grouping: Grouping, scales: Scales) -> torch.Tensor:
    """The rounded tensor, in shape and dtype of the original."""
    groups, divisor = grouping.groups, scales.divisor
    width = max(groups.shape[1], 1)
    step = max(1, CHUNK // width) if groups.device.type == "cpu" else max(len(groups), 1)
    out = torch.empty(groups.shape, dtype=grouping.dtype, device=groups.device)
    room = torch.empty(2, min(step, len(groups)), groups.shape[1], device=groups.device)
    cuts_off = _cuts_off(scales)
    for part, done, by, back in zip(*(t.split(step) for t in (groups, out, divisor, scales.step)), strict=True):
        x, scratch = room[:, : len(part)]
        scaled(part, by, None, out=x)
        if cuts_off:
            x.clamp_(-LARGEST_E2M1, LARGEST_E2M1)
        done.copy_(round_e2m1_(x, scratch).mul_(back))
    return grouping.revert(out)


def _cuts_off(scales: Scales) -> bool:
    """Whether anything may be cut off: scales are stored in few bits, and those of the least blocks end far too low."""
    if scales.largest is None or scales.step.device.type != "cpu":
        return True
    spare = torch.sub(scales.step.reshape(-1), scales.largest, alpha=1 / NEVER_ROUNDS_UP)
    return spare.numel() > 0 and not bool(spare.amin() >= 0)  # NaN is not either


class Straight(torch.autograd.Function):
    """Round a tensor, and let the gradient pass where nothing was cut off."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, grouping: Grouping, scales: Scales) -> torch.Tensor:
        ctx.context = grouping, scales.divisor * LARGEST_E2M1
        return round_blocks(grouping, scales)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grouping, high = ctx.context
        outer = Grouping(gradients[0], grouping.group_size)
        return outer.revert(straight_through(outer.groups, grouping.groups, high)), None, None
