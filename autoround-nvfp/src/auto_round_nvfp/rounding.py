# SPDX-License-Identifier: Apache-2.0
"""What is done to every weight: to rounded weights, and to codes. The arithmetic of `blocks`."""

from __future__ import annotations

import torch

from auto_round.data_type.kernels import Room, chunks, compilable
from auto_round_nvfp.blocks import CHUNK, BlockScale, Factor, Settings, scaled
from auto_round_nvfp.minifloat import LARGEST_E2M1, e2m1_codes, e2m1_values, round_e2m1_

__all__ = ["decode_groups", "encode_groups", "round_groups"]


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
    room = Room()
    for rows in chunks(groups, CHUNK):
        x = scaled(groups[rows], divisors[rows], None if shift is None else shift[rows], room)
        elements = torch.clamp(x, -LARGEST_E2M1, LARGEST_E2M1, out=x if kept is None else room.like(x, "elements"))
        beyond = None if kept is None else x.sub_(elements).sign_()
        round_e2m1_(elements, room.like(x, "powers"))
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
    room = Room()
    for rows in chunks(groups, CHUNK):
        x = scaled(groups[rows], divisors[rows], None if shift is None else shift[rows], room)
        e2m1_codes(x.clamp_(-LARGEST_E2M1, LARGEST_E2M1), out=codes[rows], room=room)
    return codes, scales.block, scales.tensor


@compilable
def decode_groups(codes: torch.Tensor, steps: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The rounded blocks again, in a dtype: elements of codes [blocks, block size] times d, float32 [blocks, 1]."""
    out, room = torch.empty(codes.shape, dtype=dtype, device=codes.device), Room()
    for rows in chunks(codes, CHUNK):
        out[rows] = e2m1_values(codes[rows], room=room).mul_(steps[rows])
    return out
