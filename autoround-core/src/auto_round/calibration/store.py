# SPDX-License-Identifier: Apache-2.0
"""Where activations of all samples are kept: in memory, or in files that the system maps into it as it needs them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import torch

__all__ = ["ActivationStore"]

SUFFIX = ".activations"


class ActivationStore:
    """Makes tensors to be filled.

    Args:
        directory: where their files go, or None for memory. What is there under our suffix is left alone until `keep`
            is called, so that a run that was cut off finds it again.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        self._files: dict[int, str] = {}
        self._count = 0

    def like(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the same shape and dtype, on the CPU, with anything in it."""
        if self._directory is None:
            return torch.empty_like(tensor, device="cpu")
        while (path := self._directory / f"{self._count:06d}{SUFFIX}").exists():
            self._count += 1
        _reserve(path, tensor.nbytes)
        return self._mapped(path, tensor.dtype, tuple(tensor.shape))

    def file_of(self, tensor: torch.Tensor) -> str:
        """Name of the file behind a tensor that this store made, or opened."""
        return self._files[tensor.data_ptr()]

    def open(self, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        """A tensor that a file of an earlier run holds.

        Raises:
            OSError: the file is not there, or of another size.
        """
        assert self._directory is not None
        path, wanted = self._directory / name, torch.Size(shape).numel() * dtype.itemsize
        if path.stat().st_size != wanted:  # mapping it would fill it up with zeros
            raise OSError(errno.EINVAL, f"{path.stat().st_size} bytes, not {wanted}")
        return self._mapped(path, dtype, shape)

    def keep(self, names: set[str]) -> None:
        """Drop all files but these."""
        if self._directory is not None:
            for path in self._directory.glob(f"*{SUFFIX}"):
                if path.name not in names:
                    path.unlink()
            self._files = {pointer: name for pointer, name in self._files.items() if name in names}

    def _mapped(self, path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        size = torch.Size(shape).numel()
        tensor = torch.from_file(str(path), shared=True, size=size, dtype=dtype).reshape(shape)
        self._files[tensor.data_ptr()] = path.name
        return tensor


def _reserve(path: Path, size: int) -> None:
    """Make a file and have room for it: writing to mapped memory that has none ends the process with a signal.

    Raises:
        OSError: the disk is full.
    """
    with path.open("xb") as file:
        try:
            if size and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
                return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
        file.truncate(size)
