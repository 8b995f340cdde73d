# SPDX-License-Identifier: Apache-2.0
"""Blocks of a tensor, and their shared exponents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from auto_round.data_type.grouping import reshape_pad_tensor_by_group_size, revert_tensor_by_pad
from auto_round.data_type.magnitudes import largest_magnitudes
from auto_round_mxfp.elements import Element, ScaleRule
from auto_round_mxfp.exponents import LIMIT, exponent_of, shared_exponents, wide_exponents

if TYPE_CHECKING:
    from auto_round.schemes import GroupSize

__all__ = ["CHUNK", "Factor", "Grouping", "Settings", "shared_exponents_of"]

Factor = torch.Tensor | float
"""A learnt factor: [groups], [groups, 1] or one number."""

CHUNK = 1 << 18
"""Elements worked on at a time on a CPU, so that the temporaries of one chunk stay in its caches."""


@dataclass(frozen=True, eq=False)
class Settings:
    """What one call of a data type is told, apart from the tensors that may be learnt.

    Attributes:
        element, rule: the format.
        group_size: elements of a block.
        tensor_min, tensor_max: the range of each block, float32 [groups], where it is known already; or one for all.
        init_scale: the scale of each block, a power of two, float32 [groups, 1], where it was searched.
    """

    element: Element
    rule: ScaleRule
    group_size: GroupSize = 32
    tensor_min: torch.Tensor | None = None
    tensor_max: torch.Tensor | None = None
    init_scale: torch.Tensor | None = None


class Grouping:
    """The grouped view of one tensor, and the way back.

    Attributes:
        groups: [groups, group size], in the dtype of the tensor (float64 becomes float32), padded with zeros.
        dtype: dtype of the tensor.
    """

    def __init__(self, tensor: torch.Tensor, group_size: GroupSize) -> None:
        self.dtype = tensor.dtype
        self.groups, self._shape, self._pad = reshape_pad_tensor_by_group_size(tensor.detach(), group_size)
        if self.dtype == torch.float64:
            self.groups = self.groups.float()

    def revert(self, groups: torch.Tensor) -> torch.Tensor:
        """A tensor shaped like `groups` in the shape of the original, contiguous; its dtype stays."""
        return revert_tensor_by_pad(groups, self._shape, self._pad).contiguous()


def shared_exponents_of(
    groups: torch.Tensor, max_scale: Factor, settings: Settings
) -> tuple[torch.Tensor, torch.Tensor]:
    """The shared exponent of each block, int32 [groups] in [-127, 127], and its largest magnitude, float32 [groups].

    With A the largest magnitude of a block, c its learnt factor and E the rule of the format, S = E(c A), and
    S = E0 + E(c A) - E(A) where a scale 2^E0 was searched.

    Args:
        groups: [groups, group size].
        max_scale: the learnt factor.
    """
    learnt = max_scale.detach().float().reshape(-1) if isinstance(max_scale, torch.Tensor) else max_scale
    largest = _known_largest(settings, len(groups))
    if largest is None:
        largest = largest_magnitudes(groups, (1,), CHUNK).reshape(-1)
    scaled = largest if isinstance(learnt, float) and learnt == 1.0 else largest * learnt
    if settings.init_scale is None:
        return shared_exponents(scaled, settings.element, settings.rule), largest
    moved = wide_exponents(scaled, settings.element, settings.rule)
    moved -= wide_exponents(largest, settings.element, settings.rule)
    return moved.add_(exponent_of(settings.init_scale.detach()).reshape(-1)).clamp_(-LIMIT, LIMIT), largest


def _known_largest(settings: Settings, count: int) -> torch.Tensor | None:
    """The largest magnitude of each block, float32 [groups], if the range was told."""
    if settings.tensor_min is None or settings.tensor_max is None:
        return None
    largest = torch.maximum(-settings.tensor_min.detach(), settings.tensor_max.detach()).float().reshape(-1)
    return largest.clamp(min=0.0).expand(count).contiguous()
