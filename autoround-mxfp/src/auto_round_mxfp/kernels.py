# SPDX-License-Identifier: Apache-2.0
"""What is done to every weight: to rounded weights, and to codes. Tuning, plain rounding and encoding all end here.

With 2^S the scale of a block, q = round(clamp(w / 2^S + v, -max, max)), and 2^S q is the rounded weight. Everything is
float32; 1 / 2^S is exact, so is 2^S q.
"""

from __future__ import annotations

import torch

from auto_round.data_type.kernels import Room, chunks, compilable
from auto_round_mxfp.blocks import CHUNK, Factor, Settings, shared_exponents_of
from auto_round_mxfp.elements import Element
from auto_round_mxfp.exponents import power_of_two
from auto_round_mxfp.rounding import codes_of, round_to_grid, values_of

__all__ = ["decode_blocks", "encode_blocks", "round_blocks"]


@compilable
def round_blocks(
    groups: torch.Tensor, shift: torch.Tensor | float, max_scale: Factor, settings: Settings
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Round blocks.

    Args:
        groups: [groups, group size].
        shift: v, float32, shaped like the groups, or one number.
        max_scale: the learnt factor.

    Returns:
        the rounded blocks, in the dtype of the groups; their exponents, int32; and their largest magnitudes before any
        factor, float32: [groups].
    """
    exponents, largest = shared_exponents_of(groups, max_scale, settings)
    scale, inverse = (power_of_two(of).unsqueeze(-1) for of in (exponents, -exponents))
    out, room = torch.empty_like(groups), Room()
    for rows in chunks(groups, CHUNK):
        x = _scaled(groups[rows], shift, rows, inverse, room)
        out[rows] = round_to_grid(x, settings.element, room.like(x, "powers")).mul_(scale[rows])
    return out, exponents, largest


@compilable
def encode_blocks(
    groups: torch.Tensor, shift: torch.Tensor | float, max_scale: Factor, settings: Settings
) -> tuple[torch.Tensor, torch.Tensor]:
    """The codes of what `round_blocks` multiplies by scales, uint8, shaped like the groups, and their exponents."""
    exponents, _ = shared_exponents_of(groups, max_scale, settings)
    inverse = power_of_two(-exponents).unsqueeze(-1)
    codes, room = torch.empty(groups.shape, dtype=torch.uint8, device=groups.device), Room()
    for rows in chunks(groups, CHUNK):
        x = _scaled(groups[rows], shift, rows, inverse, room)
        codes_of(x, settings.element, out=codes[rows], room=room)
    return codes, exponents


@compilable
def decode_blocks(codes: torch.Tensor, exponents: torch.Tensor, element: Element, dtype: torch.dtype) -> torch.Tensor:
    """The rounded blocks again, in a dtype: `values_of` codes [groups, group size] times their powers of two.

    Args:
        exponents: int32 [groups].
    """
    scale = power_of_two(exponents).unsqueeze(-1)
    out, room = torch.empty(codes.shape, dtype=dtype, device=codes.device), Room()
    for rows in chunks(codes, CHUNK):
        out[rows] = values_of(codes[rows], element, room=room).mul_(scale[rows])
    return out


def _scaled(
    groups: torch.Tensor, shift: torch.Tensor | float, rows: slice, inverse: torch.Tensor, room: Room
) -> torch.Tensor:
    """`w / 2^S + v` of a chunk's groups, float32."""
    x = room.like(groups, "x").copy_(groups).mul_(inverse[rows])
    if isinstance(shift, torch.Tensor):
        x.add_(shift[rows])
    elif shift:
        x.add_(shift)
    return x
