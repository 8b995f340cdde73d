# SPDX-License-Identifier: Apache-2.0
"""From weights to rounded weights where scales are there already: the arithmetic of `blocks` in one pass."""

from __future__ import annotations

import torch

from auto_round.data_type.kernels import chunks, compilable
from auto_round_nvfp.blocks import CHUNK, scaled
from auto_round_nvfp.minifloat import LARGEST_E2M1, round_e2m1_

__all__ = ["round_groups"]


@compilable
def round_groups(
    groups: torch.Tensor,
    dtype: torch.dtype,
    shift: torch.Tensor | None,
    steps: torch.Tensor,
    divisors: torch.Tensor,
    *,
    keep: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Round blocks to elements times their steps.

    Args:
        groups: [blocks, block size].
        dtype: of the result.
        shift: v, float32, shaped like the groups, or None for zero.
        steps, divisors: d, float32 [blocks, 1] or one for all.
        keep: what a backward pass needs.

    Returns:
        the rounded blocks, and twice their elements, one more (or less) where they were clamped: int8, or None.
    """
    out = torch.empty(groups.shape, dtype=dtype, device=groups.device)
    kept = torch.empty(groups.shape, dtype=torch.int8, device=groups.device) if keep else None
    room: list[torch.Tensor] = []
    for rows in chunks(groups, CHUNK):
        if not room:  # made once: fresh memory would cost more than what is done in it
            room = [torch.empty(rows.stop, groups.shape[1], device=groups.device) for _ in range(3)]
        x, elements, scratch = (buffer[: rows.stop - rows.start] for buffer in room)
        scaled(groups[rows], divisors[rows], None if shift is None else shift[rows], out=x)
        torch.clamp(x, -LARGEST_E2M1, LARGEST_E2M1, out=elements)
        beyond = None if kept is None else x.sub_(elements).sign_()
        round_e2m1_(elements, scratch)
        if kept is not None and beyond is not None:
            kept[rows] = beyond.add_(elements, alpha=2.0)
        out[rows] = elements.mul_(steps[rows])
    return out, kept
