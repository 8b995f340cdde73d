# SPDX-License-Identifier: Apache-2.0
"""The bytes of blocks: codes and scales to what ggml stores, and back, exactly.

Every layout is told twice, once for each direction, as slices of a block's bytes: [blocks, bytes] on one side, codes
[blocks, weights of a block] and scales [blocks, ...] on the other. Codes travel here as ggml stores them, from 0 on,
except for q8_0. Source: the block structures of ggml (`ggml-common.h`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from auto_round.data_type import Codes
from auto_round_gguf.layouts_k import LAYOUTS_K
from auto_round_gguf.sections import Layout, Parts, from_halves, join, split_nibbles, to_halves, two_nibbles
from auto_round_gguf.types import BlockType

if TYPE_CHECKING:
    from auto_round.schemes import QuantizationScheme

__all__ = ["pack_blocks", "unpack_blocks"]


def pack_blocks(codes: Mapping[str, torch.Tensor], kind: BlockType) -> torch.Tensor:
    """The bytes of a weight.

    Args:
        codes: the tensors of its `Codes`.

    Returns:
        uint8 [out_features, bytes of a row].
    """
    rows = codes["codes"].shape[0]
    parts = {name: tensor.reshape(-1, _width(name, kind)) for name, tensor in codes.items()}
    parts["codes"] = _shifted(parts["codes"], -kind.low)
    return LAYOUTS[kind.name].pack(parts).reshape(rows, -1)


def unpack_blocks(data: torch.Tensor, kind: BlockType) -> dict[str, torch.Tensor]:
    """Undo `pack_blocks`: uint8 [out_features, bytes of a row] to the tensors of `Codes`."""
    rows = data.shape[0]
    parts = LAYOUTS[kind.name].unpack(data.reshape(-1, kind.nbytes))
    if kind.signed and kind.bits != 8:
        parts["codes"] = (parts["codes"].to(torch.int8)).add_(kind.low)
    return {name: part.reshape(rows, -1) for name, part in parts.items()}


def codes_of(
    data: torch.Tensor, data_type: str, kind: BlockType, scheme: QuantizationScheme, dtype: torch.dtype
) -> Codes:
    """The `Codes` that bytes stand for."""
    tensors = unpack_blocks(data, kind)
    rows, cols = tensors["codes"].shape
    return Codes(data_type, scheme, (rows, cols), dtype, tensors)


def _width(name: str, kind: BlockType) -> int:
    """How many values of a tensor belong to one block."""
    if name == "codes":
        return kind.block
    return 1 if name.startswith("super_") else kind.super_group


def _shifted(codes: torch.Tensor, by: int) -> torch.Tensor:
    """Signed codes from 0 on, as uint8; those of eight bits stay as they are."""
    return codes if codes.dtype == torch.uint8 or by > 32 else (codes + by).to(torch.uint8)


class _Small(Layout):
    """float16 scale, then minimum if there is one, then fifth bits if there are any, then nibbles of both halves."""

    def __init__(self, minimum: bool, fifth: bool) -> None:
        self._minimum, self._fifth = minimum, fifth

    def pack(self, parts: Parts) -> torch.Tensor:
        codes = parts["codes"]
        head = [from_halves(parts["scale"])]
        if self._minimum:
            head.append(from_halves(parts["minimum"]))
        if self._fifth:
            powers = 1 << torch.arange(8, dtype=torch.uint8, device=codes.device)
            head.append((((codes >> 4) & 1).reshape(-1, 4, 8) * powers).sum(-1, dtype=torch.uint8))
        return join(*head, two_nibbles(codes[:, :16], codes[:, 16:]))

    def unpack(self, data: torch.Tensor) -> Parts:
        parts = {"scale": to_halves(data[:, :2])}
        at = 2
        if self._minimum:
            parts["minimum"], at = to_halves(data[:, 2:4]), 4
        fifth = data[:, at : at + 4] if self._fifth else None
        codes = torch.cat(split_nibbles(data[:, -16:]), 1)
        if fifth is not None:
            shifts = torch.arange(8, dtype=torch.uint8, device=data.device)
            codes |= ((fifth.unsqueeze(-1) >> shifts) & 1).reshape(-1, 32) << 4
        return {"codes": codes, **parts}


class _Eight(Layout):
    """float16 scale, then signed bytes."""

    def pack(self, parts: Parts) -> torch.Tensor:
        return join(from_halves(parts["scale"]), parts["codes"].view(torch.uint8))

    def unpack(self, data: torch.Tensor) -> Parts:
        return {"codes": data[:, 2:].contiguous().view(torch.int8), "scale": to_halves(data[:, :2])}


LAYOUTS: dict[str, Layout] = {
    "q4_0": _Small(minimum=False, fifth=False),
    "q4_1": _Small(minimum=True, fifth=False),
    "q5_0": _Small(minimum=False, fifth=True),
    "q5_1": _Small(minimum=True, fifth=True),
    "q8_0": _Eight(),
    **LAYOUTS_K,
}
