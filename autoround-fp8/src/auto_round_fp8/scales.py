# SPDX-License-Identifier: Apache-2.0
"""The scale of each group, and what it means for the learnt factor on it.

    s = max(c max|W| / largest, 1 / (512 largest))        s = max(c init_scale, ...) where a scale was given

c is the learnt factor `max_scale`. s is rounded to the dtype it is stored in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from auto_round.errors import CalibrationError
from auto_round_fp8.elements import Element

if TYPE_CHECKING:
    from auto_round.schemes import GroupSize
    from auto_round_fp8.tiles import Tiles

__all__ = ["Factor", "Settings", "frozen_scale", "learnt_factor", "scale_gradient", "scales_of", "stored"]

Factor = torch.Tensor | float
"""A learnt factor: one value per group in any shape, or one number."""


@dataclass(frozen=True, eq=False)
class Settings:
    """What one call of a data type is told, apart from the tensors that may be learnt.

    Attributes:
        element: the numbers of the grid.
        group_size: see `GroupSize`.
        scale_dtype: dtype in which scales are stored.
        tensor_min, tensor_max: the range of each group, float32, where it is known already.
        init_scale: the scale of each group, float32, where it was searched or frozen.
        unit: whether there is no scale at all.
    """

    element: Element
    group_size: GroupSize
    scale_dtype: torch.dtype = torch.float32
    tensor_min: torch.Tensor | None = None
    tensor_max: torch.Tensor | None = None
    init_scale: torch.Tensor | None = None
    unit: bool = False

    @property
    def offset_in_steps(self) -> bool:
        """Whether the learnt offset counts in steps of the grid at each weight.

        The published form adds `v` to `W / s` as it is. From one end of the grid to the other its steps grow by 2^14,
        so an offset of at most a half decides nothing for large weights and everything for small ones. Where tuning
        starts from a searched scale, `v` is the part of a step by which the rounding of a weight is moved, as for
        integers.
        """
        return self.init_scale is not None


def scales_of(
    tensor: torch.Tensor, tiles: Tiles, factor: Factor, settings: Settings
) -> tuple[torch.Tensor, torch.Tensor]:
    """The scale of each group as stored, and the magnitude it is a multiple of; float32 in the shape of `tiles.counts`.

    Scales are one value for all groups where one was given or there is none.
    """
    if settings.unit:
        one = torch.ones(1, device=tensor.device)
        return one, one
    if settings.init_scale is not None:
        start = settings.init_scale.detach().float()
        amax = start.reshape(1) if start.numel() == 1 else start.reshape(tiles.counts)
    elif settings.tensor_max is not None:
        amax = settings.tensor_max.detach().float()
        if settings.tensor_min is not None:
            amax = torch.maximum(amax.abs(), settings.tensor_min.detach().float().abs())
        amax = amax.reshape(1) if amax.numel() == 1 else amax.reshape(tiles.counts)
    else:
        amax = tiles.largest(tiles.view(tensor))
    return stored(_exact(amax, factor, settings).clamp(min=settings.element.least_scale), settings.scale_dtype), amax


def _exact(amax: torch.Tensor, factor: Factor, settings: Settings) -> torch.Tensor:
    if isinstance(factor, torch.Tensor):
        factor = factor if factor.numel() == 1 else factor.reshape(amax.shape)
    scaled = amax * factor
    return scaled if settings.init_scale is not None else scaled / settings.element.largest


def stored(scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Scales rounded to the dtype they are stored in, as float32; one that would overflow becomes the largest."""
    return scale if dtype == torch.float32 else scale.clamp(max=torch.finfo(dtype).max).to(dtype).float()


def learnt_factor(value: Factor) -> Factor:
    """A learnt factor as a value, out of reach of autograd."""
    return value.detach().float() if isinstance(value, torch.Tensor) else value


def scale_gradient(
    by_scale: torch.Tensor, amax: torch.Tensor, max_scale: torch.Tensor, settings: Settings
) -> torch.Tensor:
    """The derivative by the learnt factor from that by the scale, in the shape of the factor.

    Args:
        by_scale: float32 [groups], or [blocks down, blocks across].
        amax: as `scales_of` returned it.
    """
    if settings.unit:
        return torch.zeros_like(max_scale)
    factor = learnt_factor(max_scale)
    least, most = settings.element.least_scale, torch.finfo(settings.scale_dtype).max
    exact = _exact(amax, factor, settings)
    slope = amax if settings.init_scale is not None else amax / settings.element.largest
    gradient = by_scale * torch.where((exact >= least) & (exact <= most), slope, 0.0)
    summed = gradient if max_scale.numel() == gradient.numel() else gradient.sum()
    return summed.reshape(max_scale.shape).to(max_scale.dtype)


def frozen_scale(low: torch.Tensor, high: torch.Tensor, element: Element) -> torch.Tensor:
    """The scale of inputs whose range is known, float32 [1]: `max(-low, high) / largest`, the next bfloat16 above.

    Formats store it as float32 or in the dtype of the model; a number with eight bits of mantissa is the same in all of
    them, and rounding up keeps the largest input that was seen within the grid. A layer that saw nothing (an expert
    that no token reached) has a scale of 1, which holds all inputs up to the largest number of the element.

    Raises:
        CalibrationError: inputs were seen that are not numbers.
    """
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        raise CalibrationError(
            f"activations are static, and inputs from {float(low):g} to {float(high):g} were observed: the model "
            "computes NaN or infinite values on the calibration data."
        )
    exact = torch.maximum(-low.float(), high.float()).reshape(1) / element.largest
    narrow = exact.to(torch.bfloat16)
    above = (narrow.view(torch.int16) + 1).view(torch.bfloat16)
    up = torch.where(narrow.float() < exact, above, narrow).float()
    return torch.where(exact > 0, up.clamp(min=element.least_scale), torch.ones_like(up))
