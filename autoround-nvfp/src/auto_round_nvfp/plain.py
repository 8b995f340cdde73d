# SPDX-License-Identifier: Apache-2.0
"""Rounding where nothing is learnt: plain rounding of weights, and activations in every step of tuning.

The arithmetic of `blocks`, bit for bit, in memory that is made once, and with the gradient that goes straight through.
"""

from __future__ import annotations

from typing import Any

import torch

from auto_round.data_type.kernels import at_once, chunks
from auto_round.data_type.straight import straight_through
from auto_round_nvfp.blocks import (
    BlockScale,
    Factor,
    Grouping,
    Scales,
    Settings,
    factor,
    global_scale_of,
    largest_magnitudes,
    scaled,
)
from auto_round_nvfp.minifloat import LARGEST_E2M1, round_e2m1_
from auto_round_nvfp.rounding import round_groups

__all__ = ["Straight", "round_blocks"]

CHUNK = 1 << 19
"""Elements worked on at a time on a CPU: what is made of them stays in a shared cache, and calls are few."""

NEVER_ROUNDS_UP = 6.99
"""Below seven, numbers round to six at most, cut off or not."""


def round_blocks(
    block_scale: BlockScale, grouping: Grouping, max_scale: Factor, settings: Settings
) -> tuple[torch.Tensor, Scales]:
    """The rounded tensor, in shape and dtype of the original, and its scales (without slopes).

    Scales are made for each chunk: fresh memory for those of all blocks costs more than what is done in it.
    """
    groups, start, tensor = grouping.groups, settings.init_scale, settings.global_scale
    whole = block_scale.two_levels and tensor is None
    given = start is not None or settings.tensor_max is not None  # or made of what the blocks hold themselves
    # One range or scale may serve all blocks.
    largest = largest_magnitudes(groups, settings).expand(len(groups)) if start is None or whole else None
    start = None if start is None else start.reshape(-1).expand(len(groups))
    if whole and largest is not None:
        tensor = global_scale_of(largest.amax(), block_scale.format)
    learnt = factor(max_scale)
    if at_once(groups):
        told = Settings(settings.group_size, tensor_max=largest, init_scale=start, global_scale=tensor)
        scales = block_scale.scales(groups, learnt, told)
        rounded, _ = round_groups(groups, grouping.dtype, None, scales.step, scales.divisor, keep=False)
        return grouping.revert(rounded), block_scale.steps(scales.block, scales.tensor)
    out = torch.empty(groups.shape, dtype=grouping.dtype, device=groups.device)
    block = torch.empty(len(groups), 1, device=groups.device)
    room = torch.empty(0)
    for rows in chunks(groups, CHUNK):
        told = Settings(
            settings.group_size,
            tensor_max=None if largest is None else largest[rows],
            init_scale=None if start is None else start[rows],
            global_scale=tensor,
        )
        by = learnt[rows] if isinstance(learnt, torch.Tensor) and learnt.numel() > 1 else learnt
        scales = block_scale.scales(groups[rows], by, told)
        if not len(room):
            room = torch.empty(2, rows.stop, groups.shape[1], device=groups.device)
        x, scratch = room[:, : rows.stop - rows.start]
        scaled(groups[rows], scales.divisor, None, out=x)
        if largest is None or given or _cuts_off(scales.step, largest[rows]):
            x.clamp_(-LARGEST_E2M1, LARGEST_E2M1)
        out[rows] = round_e2m1_(x, scratch).mul_(scales.step)
        block[rows] = scales.block
    tensor = None if tensor is None else tensor.detach().float().reshape(())
    return grouping.revert(out), block_scale.steps(block, tensor)


def _cuts_off(step: torch.Tensor, largest: torch.Tensor) -> bool:
    """Whether anything may be cut off: scales are stored in few bits, and those of the least blocks end far too low."""
    if step.device.type != "cpu" or not step.numel():
        return True
    spare = torch.sub(step.reshape(-1), largest, alpha=1 / NEVER_ROUNDS_UP)
    return not bool(spare.amin() >= 0)  # NaN is not either


class Straight(torch.autograd.Function):
    """A rounded tensor, with the gradient that passes where nothing was cut off."""

    @staticmethod
    def forward(
        ctx: Any, tensor: torch.Tensor, grouping: Grouping, rounded: torch.Tensor, scales: Scales
    ) -> torch.Tensor:
        ctx.context = grouping, scales.divisor * LARGEST_E2M1
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grouping, high = ctx.context
        outer = Grouping(gradients[0], grouping.group_size)
        return outer.revert(straight_through(outer.groups, grouping.groups, high)), None, None, None
