# SPDX-License-Identifier: Apache-2.0
"""The arithmetic that every integer grid shares: groups, scales, rounding to codes and back.

Everything is computed in float32 whatever the dtype of the weight. `wide_codes` and `dequantize` are the only places
where a weight becomes a code and a code a weight: tuning, plain rounding and encoding all call them, so what is stored
is what was tuned, bit for bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from auto_round.data_type.grouping import reshape_pad_tensor_by_group_size, revert_tensor_by_pad
from auto_round.data_type.kernels import chunks, compilable
from auto_round.errors import SchemeError

if TYPE_CHECKING:
    from auto_round.schemes import GroupSize, QuantizationScheme

__all__ = [
    "CHUNK",
    "Factor",
    "Grid",
    "Grouping",
    "Scales",
    "Settings",
    "dequantize",
    "factor",
    "frozen_scales",
    "group_range",
    "store_scale",
    "where_moving",
    "wide_codes",
    "widened",
]

Factor = torch.Tensor | float
"""A learnt factor: [groups], [groups, 1] or one number."""

CHUNK = 1 << 19
"""Weights worked on at a time on a CPU, so that the temporaries of one chunk stay in its caches."""

WIDE = 64
"""Numbers in a row from which on looking at them as whole numbers takes less time than widening them."""

WHOLE = 1.5 * 2**23
"""A number near which float32 holds whole numbers only: adding it rounds half to even, subtracting it is exact.

So it is up to 2^22 on either side; what lies beyond ends up beyond every grid all the same.
"""


@dataclass(frozen=True, eq=False)
class Settings:
    """What one call of a data type is told, apart from the tensors that may be learnt.

    Attributes:
        bits: bits of a code.
        group_size: see `GroupSize`.
        scale_dtype: dtype in which scales are stored.
        threshold: smallest magnitude of a scale.
        tensor_min, tensor_max: the range of each group, float32 [groups], where it is known already.
        init_scale: the scale of each group, float32 [groups, 1], where it was searched.
    """

    bits: int
    group_size: GroupSize
    scale_dtype: torch.dtype
    threshold: float
    tensor_min: torch.Tensor | None = None
    tensor_max: torch.Tensor | None = None
    init_scale: torch.Tensor | None = None

    @classmethod
    def of(
        cls,
        bits: int,
        group_size: GroupSize,
        scale_dtype: torch.dtype,
        threshold: float | None = None,
        tensor_min: torch.Tensor | None = None,
        tensor_max: torch.Tensor | None = None,
        init_scale: torch.Tensor | None = None,
    ) -> Settings:
        """Settings with the threshold filled in: 1e-5, or 1e-8 where scales are float32.

        Raises:
            SchemeError: bits outside 2 to 8, or blocks.
        """
        if not 2 <= bits <= 8:
            raise SchemeError(f"an integer grid has 2 to 8 bits, not {bits}.")
        if isinstance(group_size, tuple):
            raise SchemeError(f"an integer grid has groups along a row, not blocks of {group_size}.")
        if threshold is None:
            threshold = 1e-8 if scale_dtype == torch.float32 else 1e-5
        return cls(bits, group_size, scale_dtype, threshold, tensor_min, tensor_max, init_scale)


class Scales(NamedTuple):
    """The grid of each group, and what it was made of.

    Attributes:
        scale: [groups, 1] in the dtype it is stored in.
        zero_point: whole numbers, float32 [groups, 1]; None where the grid has none.
        low, high: the range of each group before any learnt factor, float32 [groups].
    """

    scale: torch.Tensor
    zero_point: torch.Tensor | None
    low: torch.Tensor
    high: torch.Tensor

    def for_groups(self, count: int) -> Scales:
        """The same for that many groups, where one frozen scale serves them all."""
        if self.scale.shape[0] == count:
            return self
        zero_point = None if self.zero_point is None else self.zero_point.expand(count, 1)
        return Scales(self.scale.expand(count, 1), zero_point, self.low.expand(count), self.high.expand(count))


class Grid(ABC):
    """One way to lay whole numbers over the range of a group."""

    @abstractmethod
    def bounds(self, bits: int) -> tuple[int, int]:
        """The least and the largest code."""

    @abstractmethod
    def scales(self, groups: torch.Tensor, min_scale: Factor, max_scale: Factor, settings: Settings) -> Scales:
        """The scale, and zero point, of each group [groups, group size]."""

    @abstractmethod
    def factor_gradients(
        self,
        scales: Scales,
        min_scale: Factor,
        max_scale: Factor,
        settings: Settings,
        by_scale: torch.Tensor,
        by_zero_point: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Derivatives of the loss by `min_scale` and `max_scale`, from those by scale and zero point; all [groups]."""


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


def widened(groups: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """The chunks, each with its groups in float32: to work in, and gone with the next one.

    New memory for every chunk would cost more than what is done in it.
    """
    place = None
    for rows in chunks(groups, CHUNK):
        if place is None:
            place = torch.empty(groups[rows].shape, dtype=torch.float32, device=groups.device)
        yield rows, place[: rows.stop - rows.start].copy_(groups[rows])


def factor(value: Factor) -> Factor:
    """A learnt factor as something that multiplies [groups]."""
    return value.detach().float().reshape(-1) if isinstance(value, torch.Tensor) else value


def group_range(groups: torch.Tensor, settings: Settings) -> tuple[torch.Tensor, torch.Tensor]:
    """The least and the largest value of each group, zero included: float32 [groups] twice."""
    low, high = settings.tensor_min, settings.tensor_max
    if low is None or high is None:
        least, most = _range(groups)
        low = least if low is None else low
        high = most if high is None else high
    return low.detach().float().reshape(-1), high.detach().float().reshape(-1)


@compilable
def _range(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if groups.dtype.itemsize == 2 and groups.shape[-1] >= WIDE and not torch.compiler.is_compiling():
        return _range_of_halves(groups)
    least, most = (torch.empty(len(groups), dtype=torch.float32, device=groups.device) for _ in range(2))
    as_they_are = groups.dtype == torch.float32
    for rows, wide in ((rows, groups[rows]) for rows in chunks(groups, CHUNK)) if as_they_are else widened(groups):
        # Only the float32 forms of amin and amax are vectorised, and `aminmax` of a dimension in no dtype.
        torch.amin(wide, -1, out=least[rows])
        torch.amax(wide, -1, out=most[rows])
    return least.clamp_(max=0.0), most.clamp_(min=0.0)


def _range_of_halves(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of numbers of 16 bits, in two thirds of the time.

    Read as whole numbers they are a sign and what grows with the magnitude: the largest is that of the positive ones,
    and with signs turned it is the magnitude of the least.
    """
    whole = groups.view(torch.int16)
    least, most = (torch.empty(len(groups), dtype=torch.int16, device=groups.device) for _ in range(2))
    place = torch.empty_like(whole[next(chunks(groups, CHUNK), slice(0))])
    for rows in chunks(groups, CHUNK):
        torch.amax(whole[rows], -1, out=most[rows])
        turned = torch.bitwise_xor(whole[rows], -(1 << 15), out=place[: rows.stop - rows.start])
        torch.amax(turned, -1, out=least[rows])
    low, high = (end.clamp_(min=0).view(groups.dtype).float() for end in (least, most))
    return low.neg_(), high


def frozen_scales(grid: Grid, low: torch.Tensor, high: torch.Tensor, scheme: QuantizationScheme) -> Scales:
    """The grid of static activations, one for all of them, from the range observed over calibration.

    The scale is rounded to bfloat16 and kept above 1e-5, so that float16 and float32 hold it as well: whatever the
    dtype of the model is, a file says exactly what was tuned with.

    Args:
        low, high: float32 scalars, low <= 0 <= high.
        scheme: `act_bits` is the field that matters.
    """
    assert scheme.act_bits is not None
    settings = Settings.of(scheme.act_bits, 0, torch.bfloat16, tensor_min=low, tensor_max=high)
    return grid.scales(low.reshape(1, 1), 1.0, 1.0, settings)


def least_scale(settings: Settings) -> float:
    """The smallest magnitude of a scale, as the dtype it is stored in holds it."""
    return torch.tensor(settings.threshold, dtype=settings.scale_dtype).item()


def store_scale(exact: torch.Tensor, settings: Settings) -> torch.Tensor:
    """Scales as they are stored.

    Rounded to their dtype; what would overflow becomes the largest number that does not, what is too close to zero the
    threshold, zero itself positive.

    Args:
        exact: float32, any shape.
    """
    limit = torch.finfo(settings.scale_dtype).max
    stored = exact.clamp(-limit, limit).to(settings.scale_dtype)
    return torch.copysign(stored.abs().clamp_(min=settings.threshold), stored + 0.0)


def where_moving(gradient: torch.Tensor, scale: torch.Tensor, settings: Settings) -> torch.Tensor:
    """The gradient by a stored scale, zero where the threshold or an overflow holds the scale; float32 [groups]."""
    size, limit = scale.float().abs().reshape(-1), torch.finfo(settings.scale_dtype).max
    moving: torch.Tensor = torch.ops.aten.hardtanh_backward(gradient, size, least_scale(settings), limit)
    return moving


def wide_codes(
    wide: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    v: torch.Tensor | None,
    low: int,
    high: int,
    beyond: int = 0,
) -> torch.Tensor:
    """Codes `round(w / s + v) + z`, rounded half to even, kept within so many steps of the grid.

    They are computed in place of the weights. One step tells a backward pass where the grid was left; clamping to
    `[low, high]` then gives the codes proper.

    Args:
        wide: [groups, group size], float32, overwritten.
        scale: float32 [groups, 1].
        zero_point: float32 [groups, 1], or None for zero.
        v: float32, shaped like `wide`, or None for zero.
        low, high: ends of the grid.
        beyond: steps.

    Returns:
        float32, shaped like `wide`: whole numbers in [low - beyond, high + beyond].
    """
    # Three passes, or four with an offset, instead of dividing, adding, rounding and adding again: these are what takes
    # the time of a step. Subtracting leaves no -0.0, which no stored code can be.
    if v is None:
        row = torch.full((1, wide.shape[-1]), WHOLE, dtype=torch.float32, device=wide.device)
        codes = torch.addcdiv(row, wide, scale, out=wide)
    else:
        codes = torch.addcdiv(v, wide, scale, out=wide).add_(WHOLE)
    codes.sub_(WHOLE if zero_point is None else WHOLE - zero_point)
    return codes.clamp_(low - beyond, high + beyond)


def dequantize(codes: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None) -> torch.Tensor:
    """The values `s (q - z)` of float32 codes, computed in their place."""
    if zero_point is not None:
        codes.sub_(zero_point)
    return codes.mul_(scale)
