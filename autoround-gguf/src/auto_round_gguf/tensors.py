# SPDX-License-Identifier: Apache-2.0
"""What happens to a tensor between a checkpoint and a file: rows in another order, a number added, blocks made.

Rows are independent of each other in every block type, so that rows of bytes are put in order like rows of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from auto_round.data_type import Codes
from auto_round_gguf.block import grid_of, grouped, stored_tensors
from auto_round_gguf.fused import quantize
from auto_round_gguf.layouts import pack_blocks
from auto_round_gguf.metadata import kv_heads
from auto_round_gguf.search import find_grid
from auto_round_gguf.types import BlockType

__all__ = ["CHANGES", "code_bytes", "plain_type", "quantized_rows"]

ROWS_AT_ONCE = 1 << 22
"""Weights quantized at a time."""

PLAIN = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 30}
"""Numbers of the types that are no blocks."""


def _interleave(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """From pairs half a head apart, as transformers rotates them, to neighbours, as llama.cpp does."""
    pairs = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return pairs.transpose(1, 2).reshape(rows.shape)


def _split_heads(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """From query, key and value of one head after the other to all queries, all keys, all values."""
    return rows.reshape(heads, 3, -1, *rows.shape[1:]).transpose(0, 1).reshape(rows.shape)


def _add_one(rows: torch.Tensor, config: Any) -> torch.Tensor:
    """From a factor's difference from one to the factor."""
    return rows.float() + 1.0


CHANGES: dict[str, Callable[[torch.Tensor, Any], torch.Tensor]] = {
    "interleave": lambda rows, config: _interleave(rows, config.num_attention_heads),
    "interleave_kv": lambda rows, config: _interleave(rows, kv_heads(config)),
    "split_heads": lambda rows, config: _split_heads(rows, config.num_attention_heads),
    "add_one": _add_one,
}
"""By the names architectures use for them: tensor with rows first, and config, to tensor."""


def plain_type(tensor: torch.Tensor) -> tuple[int, torch.Tensor]:
    """How a tensor is stored that is not made of blocks: its type's number, and itself, as float32 if it is small."""
    if tensor.ndim < 2 or tensor.dtype not in PLAIN:
        tensor = tensor.float()
    return PLAIN[tensor.dtype], tensor


def code_bytes(codes: Codes, kind: BlockType) -> torch.Tensor:
    """The blocks of a finished layer, uint8 [out_features, bytes of a row]."""
    return pack_blocks(codes.to("cpu").tensors, kind)


def quantized_rows(rows: torch.Tensor, kind: BlockType) -> Iterator[torch.Tensor]:
    """The blocks of a matrix that was not tuned, searched without importance: uint8 [some rows, bytes of a row]."""
    step = max(1, ROWS_AT_ONCE // rows.shape[1])
    with torch.no_grad():
        for part in rows.split(step):
            found = find_grid(part, kind, None)
            groups = grouped(part, kind)
            grid = grid_of(groups, kind, init_scale=found.groups, global_scale=found.supers)
            codes = quantize(groups, grid, None, kind).reshape(part.shape)
            yield pack_blocks({"codes": codes, **stored_tensors(grid, kind, len(part))}, kind).cpu()
