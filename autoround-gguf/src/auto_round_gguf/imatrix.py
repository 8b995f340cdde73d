# SPDX-License-Identifier: Apache-2.0
"""Importance files of llama.cpp: what its quantizer is told with `--imatrix`, and what it makes itself.

Both kinds hold, for each matrix and input channel, the mean over tokens of the squared input. The older one is a
sequence of little-endian records; the newer one a GGUF file with two tensors for each matrix, `in_sum2` and `counts`.
Matrices are called by their GGUF names; those of experts have one row for each expert.

Source: `tools/imatrix` and `tools/quantize` of llama.cpp (MIT licence).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
import torch

from auto_round.errors import CalibrationError

__all__ = ["ImportanceFile", "read_imatrix", "write_imatrix"]

SUMS, COUNTS = ".in_sum2", ".counts"


@dataclass
class ImportanceFile:
    """Importance of a model's matrices.

    Attributes:
        means: by GGUF name with `.weight`: mean squared input, float32 [in_features] or [experts, in_features].
        counts: by the same names: tokens seen, float32 [1] or [experts].
        datasets: what text it was made of.
        chunks, chunk_size: how many pieces of how many tokens.
    """

    means: dict[str, torch.Tensor]
    counts: dict[str, torch.Tensor] = field(default_factory=dict)
    datasets: tuple[str, ...] = ()
    chunks: int = 0
    chunk_size: int = 0

    @classmethod
    def of_sums(
        cls, sums: Mapping[str, torch.Tensor], tokens: int, datasets: Sequence[str] = (), chunk_size: int = 512
    ) -> ImportanceFile:
        """From sums of squares over `tokens` tokens, as calibration observes them."""
        means = {name: value.float() / tokens for name, value in sums.items()}
        counts = {name: torch.full((1 if v.ndim == 1 else len(v),), float(tokens)) for name, v in means.items()}
        return cls(means, counts, tuple(datasets), max(1, tokens // chunk_size), chunk_size)


def read_imatrix(path: str | Path) -> ImportanceFile:
    """Read either kind.

    Raises:
        CalibrationError: it is neither, or damaged.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            newer = file.read(4) == b"GGUF"
        return _read_gguf(path) if newer else _read_legacy(path)
    except (OSError, ValueError, IndexError, KeyError, struct.error) as error:
        raise CalibrationError(f"{path} is no importance file of llama.cpp, or is damaged ({error}).") from error


def write_imatrix(path: str | Path, importance: ImportanceFile) -> None:
    """Write the older kind if the name ends in `.dat`, else the newer."""
    path = Path(path)
    (_write_legacy if path.suffix == ".dat" else _write_gguf)(path, importance)


def _read_gguf(path: Path) -> ImportanceFile:
    reader = gguf.GGUFReader(path)
    tensors = {t.name: torch.from_numpy(np.array(t.data)) for t in reader.tensors}
    found = ImportanceFile({})
    for name, sums in tensors.items():
        if not name.endswith(SUMS):
            continue
        matrix = name.removesuffix(SUMS)
        counts = tensors[matrix + COUNTS].reshape(-1)
        rows = sums.reshape(len(counts), -1)
        # An expert that never saw a token says nothing: every channel counts the same.
        means = torch.where(counts[:, None] > 0, rows / counts[:, None].clamp(min=1), 1.0)
        found.means[matrix] = means[0] if len(counts) == 1 else means
        found.counts[matrix] = counts
    if not found.means:
        raise ValueError("no sums in it")
    fields = reader.fields
    if gguf.Keys.IMatrix.DATASETS in fields:
        found.datasets = tuple(fields[gguf.Keys.IMatrix.DATASETS].contents())
    for key, attribute in ((gguf.Keys.IMatrix.CHUNK_COUNT, "chunks"), (gguf.Keys.IMatrix.CHUNK_SIZE, "chunk_size")):
        if key in fields:
            setattr(found, attribute, int(fields[key].contents()))
    return found


def _write_gguf(path: Path, importance: ImportanceFile) -> None:
    writer = gguf.GGUFWriter(path, "")
    writer.kv_data[0].pop(gguf.Keys.General.ARCHITECTURE, None)  # it describes no model
    writer.add_type(gguf.GGUFType.IMATRIX)
    writer.add_array(gguf.Keys.IMatrix.DATASETS, list(importance.datasets) or [""])
    writer.add_uint32(gguf.Keys.IMatrix.CHUNK_COUNT, importance.chunks)
    writer.add_uint32(gguf.Keys.IMatrix.CHUNK_SIZE, importance.chunk_size)
    for name in sorted(importance.means):
        means = importance.means[name].float()
        rows = means.reshape(1, -1) if means.ndim == 1 else means
        counts = importance.counts.get(name, torch.ones(len(rows))).float().reshape(-1, 1)
        writer.add_tensor(name + SUMS, (rows * counts).numpy())
        writer.add_tensor(name + COUNTS, counts.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _read_legacy(path: Path) -> ImportanceFile:
    data = path.read_bytes()
    at = 0

    def number() -> int:
        nonlocal at
        (value,) = struct.unpack_from("<i", data, at)
        at += 4
        if value < 0:
            raise ValueError(f"a negative number at byte {at - 4}")
        return int(value)

    def text(length: int) -> str:
        nonlocal at
        at += length
        return data[at - length : at].decode("utf-8")

    found = ImportanceFile({})
    for _ in range(number()):
        name = text(number())
        calls, values = number(), number()
        raw = np.frombuffer(data, "<f4", values, at).copy()
        at += 4 * values
        found.means[name] = torch.from_numpy(raw) / max(calls, 1)
        found.counts[name] = torch.tensor([float(calls)])
    if not found.means:
        raise ValueError("no entries in it")
    if at < len(data):
        found.chunks = number()
    if at < len(data):
        found.datasets = (text(number()),)
    return found


def _write_legacy(path: Path, importance: ImportanceFile) -> None:
    calls = max(importance.chunks, 1)
    parts = [struct.pack("<i", len(importance.means))]
    for name, means in sorted(importance.means.items()):
        raw = (means.float().flatten() * calls).numpy().astype("<f4")
        encoded = name.encode()
        parts += [struct.pack("<i", len(encoded)), encoded, struct.pack("<ii", calls, raw.size), raw.tobytes()]
    dataset = (importance.datasets[0] if importance.datasets else "").encode()
    parts += [struct.pack("<ii", calls, len(dataset)), dataset]
    path.write_bytes(b"".join(parts))
