# SPDX-License-Identifier: Apache-2.0
"""The range of each group, which data types are offered where it is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from auto_round.data_type.grouping import reshape_pad_tensor_by_group_size
from auto_round.data_type.kernels import Room, chunks

if TYPE_CHECKING:
    from auto_round.schemes import GroupSize

__all__ = ["group_ranges"]

CHUNK = 1 << 18
"""Numbers worked on at a time on a CPU."""


def group_ranges(tensor: torch.Tensor, group_size: GroupSize) -> tuple[torch.Tensor, torch.Tensor]:
    """The least and the largest number of each group, zero included: float32, in the shape of `group_count`, twice.

    Args:
        tensor: [out_features, in_features].
    """
    groups, _, _ = reshape_pad_tensor_by_group_size(tensor, group_size)
    values = groups.dim() // 2
    within, room = tuple(range(values, groups.dim())), Room()
    low, high = (torch.empty(groups.shape[:values], device=groups.device) for _ in range(2))
    for rows in chunks(groups, CHUNK):
        wide = room.like(groups[rows], "wide").copy_(groups[rows])
        torch.amin(wide, within, out=low[rows])
        torch.amax(wide, within, out=high[rows])
    return low.clamp_(max=0.0), high.clamp_(min=0.0)
