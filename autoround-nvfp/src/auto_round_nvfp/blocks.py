# SPDX-License-Identifier: Apache-2.0
"""The arithmetic that all block-scaled floats here share: blocks, scales of two levels, rounding and back.

With A the largest magnitude of a block, G the scale of the tensor (1 where there is none) and c the learnt factor,

    s = scale format(G A c / 6)          d = s / G
    q = E2M1(clamp(W / d + v, -6, 6))    W' = q d

all in float32, W' then cast to the weight's dtype; s = scale format(c times a searched scale) where there is one. The
order of operations is that of the runtimes that read the files: they divide s by G first, round that to float32, and
multiply. `scaled`, `round_e2m1_` and the product are the only places where a weight becomes a code and a code a
weight: tuning, plain rounding and encoding all call them, so what is stored is what was tuned, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from auto_round.data_type import magnitudes
from auto_round.data_type.grouping import reshape_pad_tensor_by_group_size, revert_tensor_by_pad
from auto_round.data_type.kernels import Room, at_once
from auto_round.errors import SchemeError
from auto_round_nvfp.minifloat import LARGEST_E2M1, ScaleFormat

if TYPE_CHECKING:
    from auto_round.schemes import GroupSize

__all__ = [
    "CHUNK",
    "BlockScale",
    "Factor",
    "Grouping",
    "Scales",
    "Settings",
    "factor",
    "global_scale_of",
    "largest_magnitudes",
    "scaled",
]

Factor = torch.Tensor | float
"""A learnt factor: [blocks], [blocks, 1] or one number."""

CHUNK = 1 << 18
"""Weights worked on at a time on a CPU, so that the temporaries of one chunk stay in its caches."""


@dataclass(frozen=True, eq=False)
class Settings:
    """What one call of a data type is told, apart from the tensors that may be learnt.

    Attributes:
        group_size: values of a block; see `GroupSize`.
        tensor_min, tensor_max: the range of each block, float32 [blocks], where it is known already.
        init_scale: the block scales, float32 [blocks, 1], where they were searched.
        global_scale: G, float32 scalar, where it is given.
    """

    group_size: GroupSize
    tensor_min: torch.Tensor | None = None
    tensor_max: torch.Tensor | None = None
    init_scale: torch.Tensor | None = None
    global_scale: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if isinstance(self.group_size, tuple):
            raise SchemeError(f"block scales belong to values of one row, not to blocks of {self.group_size}.")


class Scales(NamedTuple):
    """The scales of each block, float32.

    Attributes:
        block: s, exactly as stored, [blocks, 1].
        tensor: G, a scalar, or None where there is none.
        step: d, [blocks, 1].
        slope: derivative of d by the learnt factor, [blocks]; zero where s is held at the format's largest value.
        largest: A, [blocks], where it is the blocks' own and made the scales, else None.
    """

    block: torch.Tensor
    tensor: torch.Tensor | None
    step: torch.Tensor
    slope: torch.Tensor
    largest: torch.Tensor | None

    @property
    def divisor(self) -> torch.Tensor:
        """The step for dividing: infinite in place of zero, so that a block without a scale becomes zeros."""
        if not at_once(self.step) and self.step.numel() and bool(self.step.amin() > 0):
            return self.step
        return self.step.masked_fill(self.step == 0, float("inf"))


def global_scale_of(largest: torch.Tensor, scale_format: ScaleFormat) -> torch.Tensor:
    """G for a tensor whose largest magnitude is given: it puts the largest block scale at the end of its format.

    G = (format's largest) 6 / largest; 1 for a tensor of zeros, or of numbers so small that G were infinite.
    """
    scale = scale_format.largest * LARGEST_E2M1 / largest.detach().float().reshape(())
    return torch.where(torch.isfinite(scale), scale, 1.0)


@dataclass(frozen=True)
class BlockScale:
    """How the scales of a data type are made.

    Attributes:
        format: what block scales are stored in.
        two_levels: whether there is a scale of the tensor besides.
    """

    format: ScaleFormat
    two_levels: bool

    def scales(self, groups: torch.Tensor, max_scale: Factor, settings: Settings) -> Scales:
        """The scales of blocks [blocks, block size]."""
        start, largest = settings.init_scale, None
        if start is None or (self.two_levels and settings.global_scale is None):
            largest = largest_magnitudes(groups, settings)
        tensor = None
        if self.two_levels:
            tensor = settings.global_scale
            tensor = global_scale_of(largest.amax(), self.format) if tensor is None else tensor  # type: ignore[union-attr]
            tensor = tensor.detach().float().reshape(()).to(groups.device)
        if start is None:
            assert largest is not None
            slope = largest / LARGEST_E2M1
            exact = slope * factor(max_scale)
            exact = exact if tensor is None else tensor * exact
        else:
            start = start.detach().float().reshape(-1)
            slope = start if tensor is None else start / tensor
            exact = start * factor(max_scale)
        block = self.format.rounded(exact)
        # Zero where the scale is beyond the largest value: one vectorised pass, see `fused`.
        beyond = self.format.largest * (1 + 2**-23)
        slope = torch.ops.aten.hardtanh_backward(slope, exact, -beyond, beyond)
        own = largest if settings.init_scale is None and settings.tensor_max is None else None
        return self.steps(block.unsqueeze(-1), tensor, slope, own)

    def steps(
        self,
        block: torch.Tensor,
        tensor: torch.Tensor | None,
        slope: torch.Tensor | None = None,
        largest: torch.Tensor | None = None,
    ) -> Scales:
        """Scales from what is stored: block scales [blocks, 1] and G."""
        step = block if tensor is None else block / tensor
        return Scales(block, tensor, step, torch.zeros_like(block[:, 0]) if slope is None else slope, largest)


class Grouping:
    """The blocked view of one tensor, and the way back.

    Attributes:
        groups: [blocks, block size], in the dtype of the tensor (float64 becomes float32), padded with zeros.
        dtype: dtype of the tensor.
        group_size: what it was blocked by.
    """

    def __init__(self, tensor: torch.Tensor, group_size: GroupSize) -> None:
        self.dtype, self.group_size = tensor.dtype, group_size
        self.groups, self._shape, self._pad = reshape_pad_tensor_by_group_size(tensor.detach(), group_size)
        if self.dtype == torch.float64:
            self.groups = self.groups.float()

    def revert(self, groups: torch.Tensor) -> torch.Tensor:
        """A tensor shaped like `groups` in the shape of the original, contiguous; its dtype stays."""
        return revert_tensor_by_pad(groups, self._shape, self._pad).contiguous()


def factor(value: Factor) -> Factor:
    """A learnt factor as something that multiplies [blocks]."""
    return value.detach().float().reshape(-1) if isinstance(value, torch.Tensor) else value


def largest_magnitudes(groups: torch.Tensor, settings: Settings) -> torch.Tensor:
    """A of each block, float32 [blocks]."""
    low, high = settings.tensor_min, settings.tensor_max
    if high is not None:
        size = high.detach().float().abs()
        return (size if low is None else torch.maximum(size, low.detach().float().abs())).reshape(-1)
    return magnitudes.largest_magnitudes(groups, (1,), CHUNK).reshape(-1)


def scaled(groups: torch.Tensor, divisor: torch.Tensor, v: torch.Tensor | None, room: Room) -> torch.Tensor:
    """`W / d + v`, float32, shaped like `groups`; in `room`."""
    # Widened first: a quotient of numbers of two sizes takes half as long again on a CPU.
    x = room.like(groups, "x").copy_(groups).div_(divisor)
    return x if v is None else x.add_(v)
