# SPDX-License-Identifier: Apache-2.0
"""Rounding all blocks at once: on a GPU, or compiled. The arithmetic of `rounded_blocks`."""

from __future__ import annotations

import torch

from auto_round.data_type.kernels import compilable
from auto_round.data_type.magnitudes import largest_magnitudes
from auto_round_mxfp.blocks import CHUNK, Factor, Settings, exponents_for, known_largest
from auto_round_mxfp.elements import Element
from auto_round_mxfp.exponents import exponent_of, power_of_two
from auto_round_mxfp.rounding import round_to_grid

__all__ = ["round_at_once"]


def round_at_once(
    groups: torch.Tensor, v: torch.Tensor | float, max_scale: Factor, settings: Settings
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Round blocks; arguments and results are those of `round_in_place`."""
    shift = v.detach().reshape(groups.shape) if isinstance(v, torch.Tensor) else v
    factor = max_scale.detach().float().reshape(-1) if isinstance(max_scale, torch.Tensor) else max_scale
    known = known_largest(settings, len(groups))
    largest = largest_magnitudes(groups, (1,), CHUNK).reshape(-1) if known is None else known
    start = None if settings.init_scale is None else exponent_of(settings.init_scale.detach()).reshape(-1)
    exponents = exponents_for(largest, factor, start, settings)
    # Powers are made of exponents out here, once for a block: in there it would be done for each of its weights.
    scale, inverse = (power_of_two(of).unsqueeze(-1) for of in (exponents, -exponents))
    return _rounded(groups, shift, scale, inverse, settings.element), exponents, largest


@compilable
def _rounded(
    groups: torch.Tensor, shift: torch.Tensor | float, scale: torch.Tensor, inverse: torch.Tensor, element: Element
) -> torch.Tensor:
    x = groups.float() * inverse
    if isinstance(shift, torch.Tensor) or shift:
        x += shift
    return round_to_grid(x, element, torch.empty_like(x)).mul_(scale).to(groups.dtype)
