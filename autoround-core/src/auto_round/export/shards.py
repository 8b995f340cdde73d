# SPDX-License-Identifier: Apache-2.0
"""Tensors into safetensors shards, written as they come.

safetensors writes a file from tensors that are all in memory. Here their bytes go to a file at once, and when a shard
is full the kernel puts them behind its header: the same file, byte for byte, with one tensor in memory.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from auto_round.errors import OutputError

__all__ = ["ShardWriter"]

DEFAULT_SHARD_BYTES = 5_000_000_000

_CODES = {
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of dtypes, in the order in which safetensors puts them: wide ones first, so that all lie where they may."""

_ORDER = {dtype: n for n, dtype in enumerate(_CODES)}


@dataclass(frozen=True)
class _Waiting:
    """A tensor whose bytes are in the waiting file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    size: int


class ShardWriter:
    """Collects tensors up to a size, writes them, and at the end gives the shards their final names and an index."""

    def __init__(self, directory: Path, shard_bytes: int = DEFAULT_SHARD_BYTES) -> None:
        self._directory = directory
        self._shard_bytes = shard_bytes
        self._data: BinaryIO | None = None
        self._waiting: list[_Waiting] = []
        self._size = 0
        self._written: list[list[str]] = []
        self._names: set[str] = set()
        self._total = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Take one tensor.

        Raises:
            OutputError: the name was used before, or its dtype has no name in these files.
            OSError: writing failed.
        """
        if name in self._names:
            raise OutputError(f"tensor {name} would be written twice.")
        if tensor.dtype not in _CODES:
            raise OutputError(f"tensor {name} is {tensor.dtype}, which safetensors files cannot hold.")
        if self._waiting and self._size + tensor.nbytes > self._shard_bytes:
            self._flush()
        self._names.add(name)
        if self._data is None:
            self._data = (self._directory / "waiting.data").open("w+b")
        raw = tensor.detach().cpu().contiguous()
        self._data.write(raw.reshape(-1).view(torch.uint8).numpy().data)
        self._waiting.append(_Waiting(name, tensor.dtype, tuple(tensor.shape), self._size, tensor.nbytes))
        self._size += tensor.nbytes
        self._total += tensor.nbytes

    def close(self) -> None:
        """Write what is left, name the files and, if there are several, write their index."""
        self._flush()
        count = len(self._written)
        if count == 1:
            self._part(0).rename(self._directory / "model.safetensors")
            return
        weight_map = {}
        for index, names in enumerate(self._written):
            file = f"model-{index + 1:05d}-of-{count:05d}.safetensors"
            self._part(index).rename(self._directory / file)
            weight_map.update(dict.fromkeys(names, file))
        table = {"metadata": {"total_size": self._total}, "weight_map": dict(sorted(weight_map.items()))}
        (self._directory / "model.safetensors.index.json").write_text(json.dumps(table, indent=2) + "\n", "utf-8")

    def __del__(self) -> None:  # a run that was broken off closes nothing
        if self._data is not None:
            self._data.close()

    def _part(self, index: int) -> Path:
        return self._directory / f"part-{index:05d}.safetensors"

    def _flush(self) -> None:
        if self._data is None:
            return
        tensors = sorted(self._waiting, key=lambda t: (_ORDER[t.dtype], t.name))
        self._data.flush()
        with self._part(len(self._written)).open("wb") as file:
            file.write(_header(tensors))
            file.flush()
            for tensor in tensors:
                _copy(self._data, file, tensor)
        self._data.close()
        (self._directory / "waiting.data").unlink()
        self._written.append([tensor.name for tensor in self._waiting])
        self._data, self._waiting, self._size = None, [], 0


def _header(tensors: list[_Waiting]) -> bytes:
    """Length and text that begin a safetensors file, filled up with spaces to whole words."""
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        place = [at, at + tensor.size]
        table[tensor.name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": place}
        at += tensor.size
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _copy(source: BinaryIO, target: BinaryIO, tensor: _Waiting) -> None:
    done = 0
    while done < tensor.size:
        at, left = tensor.start + done, tensor.size - done
        if hasattr(os, "sendfile") and os.uname().sysname == "Linux":
            done += os.sendfile(target.fileno(), source.fileno(), at, left)
        else:
            source.seek(at)
            done += target.write(source.read(min(left, 1 << 24)))
            target.flush()
