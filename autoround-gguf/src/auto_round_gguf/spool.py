# SPDX-License-Identifier: Apache-2.0
"""Tensors on their way into a file: GGUF wants to know all of them before the first byte of one is written.

So their bytes wait in a file of their own, never in memory; one tensor at a time is taken out of it again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

__all__ = ["Spool", "Waiting"]


@dataclass
class Waiting:
    """A tensor that waits.

    Attributes:
        number: its type in files.
        shape: of its weights, outermost first.
        parts: place and size in the waiting file, by position in the tensor (experts arrive one by one).
    """

    number: int
    shape: tuple[int, ...]
    parts: dict[int, list[tuple[int, int]]] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(size for runs in self.parts.values() for _, size in runs)


class Spool:
    """The waiting file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("w+b")
        self.tensors: dict[str, Waiting] = {}

    def add(self, name: str, number: int, shape: tuple[int, ...], data: torch.Tensor, part: int = 0) -> None:
        """Append bytes to a tensor, or to a part of one.

        Args:
            shape: of the whole tensor.
            data: any dtype; its memory as it lies is what is written.
        """
        waiting = self.tensors.setdefault(name, Waiting(number, shape))
        raw: np.ndarray[Any, Any] = data.detach().cpu().contiguous().view(torch.uint8).reshape(-1).numpy()
        at = self._file.seek(0, 2)
        self._file.write(raw.data)
        waiting.parts.setdefault(part, []).append((at, raw.nbytes))

    def write(self, writer: gguf.GGUFWriter) -> None:
        """Write header, metadata and all tensors, in the order of blocks, and forget them."""
        order = sorted(self.tensors, key=_block)
        for name in order:
            waiting = self.tensors[name]
            kind = gguf.GGMLQuantizationType(waiting.number)
            writer.add_tensor_info(name, waiting.shape, np.dtype(np.int8), waiting.nbytes, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        self._file.flush()
        for name in order:
            parts = self.tensors[name].parts
            runs = [run for number in sorted(parts) for run in parts[number]]
            writer.write_tensor_data(self._read(runs))
        self.close()

    def close(self) -> None:
        """Drop the waiting file."""
        self._file.close()
        self._path.unlink(missing_ok=True)

    def __del__(self) -> None:  # a run that was broken off closes nothing
        self._file.close()

    def _read(self, runs: list[tuple[int, int]]) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        found = np.empty(sum(size for _, size in runs), np.uint8)
        at = 0
        for start, size in runs:
            self._file.seek(start)
            self._file.readinto(found[at : at + size].data)
            at += size
        return found


def _block(name: str) -> int:
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "blk" else -1
