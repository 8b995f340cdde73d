# SPDX-License-Identifier: Apache-2.0
"""Tensors into safetensors shards, written as they come."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from auto_round.errors import OutputError

__all__ = ["ShardWriter"]

DEFAULT_SHARD_BYTES = 5_000_000_000


class ShardWriter:
    """Collects tensors up to a size, writes them, and at the end gives the shards their final names and an index."""

    def __init__(self, directory: Path, shard_bytes: int = DEFAULT_SHARD_BYTES) -> None:
        self._directory = directory
        self._shard_bytes = shard_bytes
        self._pending: dict[str, torch.Tensor] = {}
        self._pending_bytes = 0
        self._written: list[list[str]] = []
        self._names: set[str] = set()
        self._storages: set[int] = set()
        self._total = 0
        probe = directory / "mode"
        probe.touch()
        self._mode = probe.stat().st_mode
        probe.unlink()

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Take one tensor.

        Raises:
            OutputError: the name was used before, or writing failed.
        """
        if name in self._names:
            raise OutputError(f"tensor {name} would be written twice.")
        if self._pending and self._pending_bytes + tensor.nbytes > self._shard_bytes:
            self._flush()
        self._names.add(name)
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        # safetensors refuses tensors that share memory, and layers may well share a scale.
        self._pending[name] = tensor.clone() if storage in self._storages else tensor
        self._storages.add(storage)
        self._pending_bytes += tensor.nbytes
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

    def _part(self, index: int) -> Path:
        return self._directory / f"part-{index:05d}.safetensors"

    def _flush(self) -> None:
        if not self._pending:
            return
        try:
            save_file(self._pending, self._part(len(self._written)), metadata={"format": "pt"})
        except SafetensorError as error:
            raise OutputError(f"{self._directory} could not be written: {error}.") from error
        # safetensors makes its files readable by their owner alone; checkpoints are shared like any other file.
        self._part(len(self._written)).chmod(self._mode)
        self._written.append(list(self._pending))
        self._pending, self._pending_bytes = {}, 0
        self._storages.clear()
