# SPDX-License-Identifier: Apache-2.0
"""Rounding where nothing is learnt: plain rounding of weights, and activations in every step of tuning.

The arithmetic of `blocks`, and the gradient that goes straight through.
"""

from __future__ import annotations

from typing import Any

import torch

from auto_round.data_type.kernels import compilable
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
)
from auto_round_nvfp.minifloat import LARGEST_E2M1
from auto_round_nvfp.rounding import round_groups

__all__ = ["Straight", "round_blocks"]


def round_blocks(
    block_scale: BlockScale, grouping: Grouping, max_scale: Factor, settings: Settings
) -> tuple[torch.Tensor, Scales]:
    """The rounded tensor, in shape and dtype of the original, and its scales (without slopes)."""
    rounded, block, tensor = _round_all(block_scale, grouping.groups, grouping.dtype, factor(max_scale), settings)
    return grouping.revert(rounded), block_scale.steps(block, tensor)


@compilable
def _round_all(
    block_scale: BlockScale, groups: torch.Tensor, dtype: torch.dtype, learnt: Factor, settings: Settings
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The rounded blocks, and s and G."""
    start, tensor = settings.init_scale, settings.global_scale
    whole = block_scale.two_levels and tensor is None
    # One range or scale may serve all blocks.
    largest = largest_magnitudes(groups, settings).expand(len(groups)) if start is None or whole else None
    start = None if start is None else start.reshape(-1).expand(len(groups))
    if whole and largest is not None:
        tensor = global_scale_of(largest.amax(), block_scale.format)
    told = Settings(settings.group_size, tensor_max=largest, init_scale=start, global_scale=tensor)
    scales = block_scale.scales(groups, learnt, told)
    rounded, _ = round_groups(groups, dtype, None, scales.step, scales.divisor, keep=False)
    return rounded, scales.block, scales.tensor


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
