# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are quantized already, as input: whoever knows how they are stored says what they stand for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from auto_round.errors import ModelError
from auto_round.model.source import StoredTensor

__all__ = ["PlainReader", "Slices", "StoredFiles", "WeightReader"]


class Slices(Protocol):
    """A tensor in a file: `[first:last]` reads those rows alone."""

    def get_shape(self) -> list[int]:
        """Its shape."""

    def __getitem__(self, rows: slice) -> torch.Tensor:
        """Some of its rows."""


class StoredFiles(ExitStack):
    """The tensors of a checkpoint, read where they lie; files stay open as long as the context lasts."""

    def __init__(self, headers: Mapping[str, StoredTensor]) -> None:
        super().__init__()
        self._headers = headers
        self._opened: dict[Path, Any] = {}

    @property
    def names(self) -> Collection[str]:
        """All of them."""
        return self._headers.keys()

    def slices(self, name: str) -> Slices:
        """A stored tensor, to be read in parts.

        Raises:
            ModelError: its file cannot be read.
        """
        with self._reading(name) as file:
            result: Slices = file.get_slice(name)
        return result

    def tensor(self, name: str) -> torch.Tensor:
        """A stored tensor.

        Raises:
            ModelError: its file cannot be read.
        """
        with self._reading(name) as file:
            result: torch.Tensor = file.get_tensor(name)
        return result

    @contextmanager
    def _reading(self, name: str) -> Iterator[Any]:
        file = self._headers[name].file
        try:
            if file not in self._opened:
                self._opened[file] = self.enter_context(safe_open(file, framework="pt"))
            yield self._opened[file]
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{name} cannot be read from {file} any more: {error}.") from error


class WeightReader(ABC):
    """How the stored tensors of one way to quantize become those of the plain model; see `OutputFormat.reader`."""

    @abstractmethod
    def plain(self, stored: Mapping[str, StoredTensor], dtype: torch.dtype) -> Mapping[str, StoredTensor]:
        """The tensors of the plain model, as if they were stored.

        Args:
            stored: what the headers of the files say.
            dtype: of weights that have none of their own any more.
        """

    @abstractmethod
    def read(self, name: str, files: StoredFiles, dtype: torch.dtype) -> torch.Tensor:
        """One tensor of the plain model.

        Args:
            name: one of `plain`.
            dtype: as there.

        Raises:
            ModelError: what is stored makes no sense.
        """

    def read_all(
        self, headers: Mapping[str, StoredTensor], stored: Mapping[str, StoredTensor], dtype: torch.dtype
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor of the plain model, one at a time, file by file.

        Args:
            headers: what `plain` returned, or a part of it.
        """
        with StoredFiles(stored) as files:
            for name in sorted(headers, key=lambda n: (headers[n].file, n)):
                yield name, self.read(name, files, dtype)


class PlainReader(WeightReader):
    """For checkpoints whose tensors are what they are."""

    def plain(self, stored: Mapping[str, StoredTensor], dtype: torch.dtype) -> Mapping[str, StoredTensor]:
        return stored

    def read(self, name: str, files: StoredFiles, dtype: torch.dtype) -> torch.Tensor:
        return files.tensor(name)
