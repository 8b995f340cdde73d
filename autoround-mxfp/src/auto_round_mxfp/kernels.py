# SPDX-License-Identifier: Apache-2.0
"""What is done to every weight: to rounded weights, and to codes. Tuning, plain rounding and encoding all end here.

With 2^S the scale of a block, q = round(clamp(w / 2^S + v, -max, max)), and 2^S q is the rounded weight. Everything is
float32; 1 / 2^S is exact, so is 2^S q.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from auto_round.data_type.kernels import chunks, compilable
from auto_round_mxfp.blocks import CHUNK, Factor, Settings, shared_exponents_of
from auto_round_mxfp.elements import Element
from auto_round_mxfp.exponents import power_of_two
from auto_round_mxfp.rounding import codes_of, round_to_grid

__all__ = ["encode_blocks", "round_blocks"]


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
    out = torch.empty_like(groups)
    for rows, elements in _rounded(groups, shift, inverse, settings.element):
        out[rows] = elements.mul_(scale[rows])
    return out, exponents, largest


@compilable
def encode_blocks(
    groups: torch.Tensor, shift: torch.Tensor | float, max_scale: Factor, settings: Settings
) -> tuple[torch.Tensor, torch.Tensor]:
    """The codes of what `round_blocks` multiplies by scales, uint8, shaped like the groups, and their exponents."""
    exponents, _ = shared_exponents_of(groups, max_scale, settings)
    inverse = power_of_two(-exponents).unsqueeze(-1)
    codes = torch.empty(groups.shape, dtype=torch.uint8, device=groups.device)
    for rows, elements in _rounded(groups, shift, inverse, settings.element):
        codes[rows] = codes_of(elements, settings.element)
    return codes, exponents


def _rounded(
    groups: torch.Tensor, shift: torch.Tensor | float, inverse: torch.Tensor, element: Element
) -> Iterator[tuple[slice, torch.Tensor]]:
    """The chunks, each with the q of the formula, float32: to work in, and gone with the next one."""
    room: list[torch.Tensor] = []
    for rows in chunks(groups, CHUNK):
        if not room:  # made once: fresh memory would cost more than what is done in it
            room = [torch.empty(rows.stop, groups.shape[1], device=groups.device) for _ in range(2)]
        x, scratch = (buffer[: rows.stop - rows.start] for buffer in room)
        x.copy_(groups[rows]).mul_(inverse[rows])
        if isinstance(shift, torch.Tensor):
            x.add_(shift[rows])
        elif shift:
            x.add_(shift)
        yield rows, round_to_grid(x, element, scratch)
