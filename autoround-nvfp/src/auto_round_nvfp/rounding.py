# SPDX-License-Identifier: Apache-2.0
"""What is done to every weight: to rounded weights, and to codes. The arithmetic of `blocks`."""

from __future__ import annotations

import torch

from auto_round.data_type.kernels import chunks, compilable
from auto_round_nvfp.blocks import CHUNK, BlockScale, Factor, Settings, scaled
from auto_round_nvfp.minifloat import LARGEST_E2M1, e2m1_codes, round_e2m1_

__all__ = ["encode_groups", "round_groups"]


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
            room = [torch.empty(rows.stop, groups.shape[1], device=groups.device) for _ in range(2 + keep)]
        x, scratch, *others = (buffer[: rows.stop - rows.start] for buffer in room)
        scaled(groups[rows], divisors[rows], None if shift is None else shift[rows], out=x)
        elements = torch.clamp(x, -LARGEST_E2M1, LARGEST_E2M1, out=others[0] if others else x)
        beyond = x.sub_(elements).sign_() if others else None
        round_e2m1_(elements, scratch)
        if kept is not None and beyond is not None:
            kept[rows] = beyond.add_(elements, alpha=2.0)
        out[rows] = elements.mul_(steps[rows])
    return out, kept


@compilable
def encode_groups(
    block_scale: BlockScale,
    groups: torch.Tensor,
    shift: torch.Tensor | None,
    max_scale: Factor,
    settings: Settings,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The codes of the elements that `round_groups` multiplies, uint8, shaped like the groups; and s and G."""
    scales = block_scale.scales(groups, max_scale, settings)
    divisors, codes = scales.divisor, torch.empty(groups.shape, dtype=torch.uint8, device=groups.device)
    room: list[torch.Tensor] = []
    for rows in chunks(groups, CHUNK):
        if not room:
            room = [torch.empty(rows.stop, groups.shape[1], device=groups.device) for _ in range(2)]
        x, scratch = (buffer[: rows.stop - rows.start] for buffer in room)
        scaled(groups[rows], divisors[rows], None if shift is None else shift[rows], out=x)
        codes[rows] = e2m1_codes(round_e2m1_(x.clamp_(-LARGEST_E2M1, LARGEST_E2M1), scratch))
    return codes, scales.block, scales.tensor
