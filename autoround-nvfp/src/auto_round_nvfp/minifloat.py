# SPDX-License-Identifier: Apache-2.0
"""Floats of four and eight bits, held in float32: rounding to them, their codes, and back.

| format | sign, exponent, mantissa bits | bias | values | source |
|---|---|---|---|---|
| E2M1 | 1, 2, 1 | 1 | 0, 0.5, 1, 1.5, 2, 3, 4, 6, with sign | OCP Microscaling Formats 1.0, 5.3.3 |
| E4M3 | 1, 4, 3 | 7 | up to 448, least 2^-9 | Micikevicius et al. 2022, arXiv:2209.05433 |
| UE5M3 | 0, 5, 3 | 15 | up to 114688, least 2^-17, no infinity, code 255 is no number | IEEE 754's rules |

Everything rounds to nearest, ties to even, and saturates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch

from auto_round.data_type.float8 import float8_values
from auto_round.data_type.kernels import Room
from auto_round.data_type.minifloats import minifloat_codes, minifloat_values, round_to_minifloat_

__all__ = ["E4M3", "LARGEST_E2M1", "UE5M3", "ScaleFormat", "e2m1_codes", "e2m1_values", "round_e2m1_"]

LARGEST_E2M1 = 6.0


def round_e2m1_(x: torch.Tensor, scratch: torch.Tensor | None = None) -> torch.Tensor:
    """Round float32 values below 7 in size, the last that come out as at most 6, to E2M1, in place."""
    return round_to_minifloat_(x, 1, 0, LARGEST_E2M1, scratch)


def e2m1_codes(x: torch.Tensor, *, out: torch.Tensor | None = None, room: Room | None = None) -> torch.Tensor:
    """The codes of what `round_e2m1_` rounds to: uint8, the magnitude's place 0 to 7 in the table above, plus 8 if
    negative; never 8 itself.

    Args:
        x: float32, contiguous, from -6 to 6; overwritten.
        out: uint8, shaped like x; None makes one.
        room: to work in.
    """
    return minifloat_codes(x, 4, 1, 0, LARGEST_E2M1, out=out, room=room)


def e2m1_values(codes: torch.Tensor, *, room: Room | None = None) -> torch.Tensor:
    """Codes 0 to 15 to E2M1 values, float32; code 8 is -0.0. In `room`, where there is one."""
    return minifloat_values(codes, 4, 1, 0, room=room)


class ScaleFormat(ABC):
    """An eight-bit float that block scales are stored in.

    Attributes:
        name: what people call it.
        largest: its largest value.
        dtype: dtype of a stored scale.
        least_exponent: exponent of the least normal value; three bits of mantissa below it too.
    """

    name: ClassVar[str]
    largest: ClassVar[float]
    dtype: ClassVar[torch.dtype]
    least_exponent: ClassVar[int]

    @abstractmethod
    def store(self, scale: torch.Tensor) -> torch.Tensor:
        """Round float32 scales, saturating, and store them."""

    def rounded(self, scale: torch.Tensor) -> torch.Tensor:
        """What `load` makes of what `store` makes of scales that are not negative, several times faster on a CPU."""
        return round_to_minifloat_(scale.float().clamp(0.0, self.largest), 3, self.least_exponent, self.largest)

    @abstractmethod
    def load(self, stored: torch.Tensor) -> torch.Tensor:
        """Stored scales as float32, exactly."""

    def codes(self, scale: torch.Tensor) -> torch.Tensor:
        """Codes of scales that are not negative, int32; neighbouring values have neighbouring codes."""
        return self.store(scale).view(torch.uint8).int()

    def values(self, codes: torch.Tensor) -> torch.Tensor:
        """Undo `codes`, float32; codes below zero or above the largest mean the least and the largest value."""
        last = int(self.codes(torch.tensor([self.largest])).item())
        return self.load(codes.clamp(0, last).to(torch.uint8).view(self.dtype))


class _E4M3(ScaleFormat):
    name = "E4M3"
    largest = 448.0
    dtype = torch.float8_e4m3fn
    least_exponent = -6

    def store(self, scale: torch.Tensor) -> torch.Tensor:
        # Clamped first: what a cast makes of larger values depends on who casts.
        return scale.clamp(-self.largest, self.largest).to(self.dtype)

    def load(self, stored: torch.Tensor) -> torch.Tensor:
        return float8_values(stored)


class _UE5M3(ScaleFormat):
    name = "UE5M3"
    largest = 114688.0
    dtype = torch.uint8
    least_exponent = -14

    LEAST_NORMAL = 2.0**-14
    LEAST = 2.0**-17
    REBIAS = (127 - 15) << 3
    """What a code differs by from the top bits of the same number in float32."""

    def store(self, scale: torch.Tensor) -> torch.Tensor:
        rounded = self.rounded(scale)
        normal = (rounded.view(torch.int32) >> 20) - self.REBIAS
        return torch.where(rounded < self.LEAST_NORMAL, (rounded / self.LEAST).int(), normal).to(torch.uint8)

    def load(self, stored: torch.Tensor) -> torch.Tensor:
        codes = stored.int()
        normal = ((codes + self.REBIAS) << 20).view(torch.float32)
        value = torch.where(codes < 8, codes * self.LEAST, normal)
        return value.masked_fill_(codes == 255, float("nan"))


E4M3: ScaleFormat = _E4M3()
UE5M3: ScaleFormat = _UE5M3()
