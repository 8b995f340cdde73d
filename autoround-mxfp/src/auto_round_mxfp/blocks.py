# SPDX-License-Identifier: Apache-2.0
"""From a tensor to rounded elements and shared exponents: the arithmetic that tuning, rounding and encoding share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from auto_round.data_type.grouping import reshape_pad_tensor_by_group_size, revert_tensor_by_pad
from auto_round.data_type.kernels import chunks
from auto_round_mxfp.elements import Element, ScaleRule
from auto_round_mxfp.exponents import LIMIT, exponent_of, power_of_two, shared_exponents, wide_exponents
from auto_round_mxfp.rounding import round_to_grid

if TYPE_CHECKING:
    from auto_round.schemes import GroupSize

__all__ = ["CHUNK", "Blocks", "Factor", "Grouping", "Settings", "exponents_for", "known_largest", "rounded_blocks"]

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


class Blocks(NamedTuple):
    """Some blocks, rounded.

    Attributes:
        rows: which ones.
        elements: the rounded elements, float32 [blocks, group size]; overwritten by the next ones.
        exponents: their shared exponents, int32 [blocks], in [-127, 127].
        largest: their largest magnitude before any learnt factor, float32 [blocks].
    """

    rows: slice
    elements: torch.Tensor
    exponents: torch.Tensor
    largest: torch.Tensor


class Grouping:
    """The grouped view of one tensor, and the way back.

    Attributes:
        groups: [groups, group size], in the dtype of the tensor, padded with zeros.
        dtype: dtype of the tensor.
    """

    def __init__(self, tensor: torch.Tensor, group_size: GroupSize) -> None:
        self.dtype = tensor.dtype
        self.groups, self._shape, self._pad = reshape_pad_tensor_by_group_size(tensor.detach(), group_size)

    def revert(self, groups: torch.Tensor) -> torch.Tensor:
        """A tensor shaped like `groups` in the shape of the original, contiguous; its dtype stays."""
        return revert_tensor_by_pad(groups, self._shape, self._pad).contiguous()


def rounded_blocks(
    groups: torch.Tensor, v: torch.Tensor | float, max_scale: Factor, settings: Settings
) -> Iterator[Blocks]:
    """Round blocks, a chunk at a time.

    With A the largest magnitude of a block, c its learnt factor and E the rule of the format,

        S = clamp(E(c A), -127, 127)        q = round(clamp(w / 2^S + v, -max, max))

    and S = E0 + E(c A) - E(A) where a scale 2^E0 was searched. Everything is float32; 1 / 2^S is exact, so is 2^S q.

    Args:
        groups: [groups, group size].
        v: the learnt offset, float32, shaped like the groups, or one number.
        max_scale: the learnt factor.
    """
    width = groups.shape[1]
    shift = v.detach().reshape(groups.shape) if isinstance(v, torch.Tensor) else None
    learnt = max_scale.detach().float().reshape(-1) if isinstance(max_scale, torch.Tensor) else max_scale
    bound = known_largest(settings, len(groups))
    start = None if settings.init_scale is None else exponent_of(settings.init_scale.detach()).reshape(-1)
    buffers: tuple[torch.Tensor, torch.Tensor] | None = None
    for rows in chunks(groups, CHUNK):
        count = rows.stop - rows.start
        if buffers is None:
            shape = (count, width)
            buffers = torch.empty(shape, device=groups.device), torch.empty(shape, device=groups.device)
        x, scratch = (buffer[:count] for buffer in buffers)
        x.copy_(groups[rows])
        largest = torch.abs(x, out=scratch).amax(-1) if bound is None else bound[rows]
        factor = learnt[rows] if isinstance(learnt, torch.Tensor) and learnt.numel() > 1 else learnt
        exponents = exponents_for(largest, factor, None if start is None else start[rows], settings)
        x.mul_(power_of_two(-exponents).unsqueeze(-1))
        if shift is not None:
            x.add_(shift[rows])
        elif v:
            x.add_(v)
        yield Blocks(rows, round_to_grid(x, settings.element, scratch), exponents, largest)


def exponents_for(
    largest: torch.Tensor, factor: Factor, start: torch.Tensor | None, settings: Settings
) -> torch.Tensor:
    """The shared exponents of the formula above, int32 [groups].

    Args:
        largest: A, float32 [groups].
        factor: c, [groups] or one number.
        start: E0, int32 [groups], where scales were searched.
    """
    scaled = largest if isinstance(factor, float) and factor == 1.0 else largest * factor
    if start is None:
        return shared_exponents(scaled, settings.element, settings.rule)
    moved = wide_exponents(scaled, settings.element, settings.rule)
    moved -= wide_exponents(largest, settings.element, settings.rule)
    return moved.add_(start).clamp_(-LIMIT, LIMIT)


def known_largest(settings: Settings, count: int) -> torch.Tensor | None:
    """The largest magnitude of each block, float32 [groups], if the range was told."""
    if settings.tensor_min is None or settings.tensor_max is None:
        return None
    largest = torch.maximum(-settings.tensor_min.detach(), settings.tensor_max.detach()).float().reshape(-1)
    return largest.clamp(min=0.0).expand(count).contiguous()
