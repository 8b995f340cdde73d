# SPDX-License-Identifier: Apache-2.0
"""Rounding all blocks at once: on a GPU, or compiled. The arithmetic of `rounded_blocks`."""

from __future__ import annotations

import torch

from auto_round.data_type.kernels import chunks, compilable
from auto_round_mxfp.blocks import CHUNK, Factor, Settings, exponents_for, known_largest
from auto_round_mxfp.elements import Element
from auto_round_mxfp.exponents import MAGNITUDE, exponent_of, power_of_two
from auto_round_mxfp.rounding import round_to_grid

__all__ = ["round_at_once"]


def round_at_once(
    groups: torch.Tensor, v: torch.Tensor | float, max_scale: Factor, settings: Settings
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Round blocks; arguments and results are those of `round_in_place`."""
    shift = v.detach().reshape(groups.shape) if isinstance(v, torch.Tensor) else v
    factor = max_scale.detach().float().reshape(-1) if isinstance(max_scale, torch.Tensor) else max_scale
    known = known_largest(settings, len(groups))
    largest = _largest(groups) if known is None else known
    start = None if settings.init_scale is None else exponent_of(settings.init_scale.detach()).reshape(-1)
    exponents = exponents_for(largest, factor, start, settings)
    # Powers are made of exponents out here, once for a block: in there it would be done for each of its weights.
    scale, inverse = (power_of_two(of).unsqueeze(-1) for of in (exponents, -exponents))
    return _rounded(groups, shift, scale, inverse, settings.element), exponents, largest


def _largest(groups: torch.Tensor) -> torch.Tensor:
    """The largest magnitude of each block, float32; as it stands, as compiled code takes twice as long for so few."""
    largest = torch.empty(len(groups), dtype=torch.int32, device=groups.device)
    room = torch.empty(0)
    for rows in chunks(groups, CHUNK):
        if not len(room):
            room = torch.empty(groups[rows].shape, device=groups.device)
        # As integers magnitudes are in the same order, and a CPU finds the largest several times faster.
        bits = room[: rows.stop - rows.start].copy_(groups[rows]).view(torch.int32).bitwise_and_(MAGNITUDE)
        torch.amax(bits, -1, out=largest[rows])
    return largest.view(torch.float32)


@compilable
def _rounded(
    groups: torch.Tensor, shift: torch.Tensor | float, scale: torch.Tensor, inverse: torch.Tensor, element: Element
) -> torch.Tensor:
    x = groups.float() * inverse
    if isinstance(shift, torch.Tensor) or shift:
        x += shift
    return round_to_grid(x, element, torch.empty_like(x)).mul_(scale).to(groups.dtype)
