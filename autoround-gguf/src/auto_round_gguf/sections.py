# SPDX-License-Identifier: Apache-2.0
"""What the layouts of blocks are made of: float16 bytes, nibbles, bits of several codes in one byte."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod

import torch

__all__ = ["Layout", "Parts", "from_halves", "join", "split_nibbles", "spread", "stack", "to_halves", "two_nibbles"]

Parts = dict[str, torch.Tensor]
"""The tensors of `Codes` with one row per block."""


class Layout(ABC):
    """How one block type lies in memory."""

    @abstractmethod
    def pack(self, parts: Parts) -> torch.Tensor:
        """uint8 [blocks, bytes of a block]; codes from 0 on."""

    @abstractmethod
    def unpack(self, data: torch.Tensor) -> Parts:
        """Undo `pack`."""


def join(*parts: torch.Tensor) -> torch.Tensor:
    """Bytes one after the other."""
    return torch.cat(parts, 1)


def from_halves(values: torch.Tensor) -> torch.Tensor:
    """float16 [blocks, n] as little-endian bytes [blocks, 2 n]."""
    _check_host()
    return values.contiguous().view(torch.uint8)


def to_halves(data: torch.Tensor) -> torch.Tensor:
    """Undo `from_halves`."""
    _check_host()
    return data.contiguous().view(torch.float16)


def two_nibbles(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """The lowest four bits of two equally shaped tensors, in one byte each."""
    return (low & 15) | (high << 4)


def split_nibbles(data: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Low and high four bits."""
    return data & 15, data >> 4


def stack(pieces: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes [..., n, m] below 2^bits to bytes [..., m]: the n-th piece in the n-th `bits` from below."""
    stacked = pieces[..., 0, :].clone()
    for n in range(1, pieces.shape[-2]):
        stacked |= pieces[..., n, :] << (bits * n)
    return stacked


def spread(data: torch.Tensor, bits: int) -> torch.Tensor:
    """Undo `stack`: bytes [..., m] to codes [..., 8 / bits, m]."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=data.device).unsqueeze(-1)
    return (data.unsqueeze(-2) >> shifts) & ((1 << bits) - 1)


def _check_host() -> None:
    if sys.byteorder != "little":  # pragma: no cover  # views of bytes as words would come out reversed
        raise RuntimeError("GGUF blocks need a little-endian host.")
