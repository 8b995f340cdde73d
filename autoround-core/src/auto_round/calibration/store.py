# SPDX-License-Identifier: Apache-2.0
"""Where activations of all samples are kept: in memory, on a device, or in files that the system maps."""

from __future__ import annotations

import errno
import os
import weakref
from pathlib import Path

import torch

__all__ = ["ActivationStore"]

SUFFIX = ".activations"


class ActivationStore:
    """Makes tensors to be filled.

    Args:
        directory: where their files go, or None for no files. What is there under our suffix is left alone until `keep`
            is called, so that a run that was cut off finds it again.
        memory: where they live if not in those files, which then hold copies of what `file_of` is asked for; None for
            files alone, or the CPU where there are none.
        lasting: whether files stay when this process ends.
    """

    def __init__(
        self, directory: Path | None = None, memory: torch.device | None = None, *, lasting: bool = True
    ) -> None:
        self._directory = directory
        self._memory = memory if memory is not None or directory is not None else torch.device("cpu")
        self._lasting = lasting
        self._files: dict[int, str] = {}
        self._copies: dict[str, weakref.ref[torch.Tensor]] = {}
        self._count = 0

    def like(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the same shape and dtype with anything in it."""
        if self._memory is not None:
            return torch.empty_like(tensor, device=self._memory)
        return self._file_like(tensor)

    def _file_like(self, tensor: torch.Tensor) -> torch.Tensor:
        assert self._directory is not None
        while (path := self._directory / f"{self._count:06d}{SUFFIX}").exists():
            self._count += 1
        _reserve(path, tensor.nbytes)
        mapped = self._mapped(path, tensor.dtype, tuple(tensor.shape))
        if not self._lasting:
            path.unlink()  # what is mapped stays until nobody looks at it any more
        return mapped

    def file_of(self, tensor: torch.Tensor) -> str:
        """Name of the file behind a tensor that this store made, or opened; of a copy where it lives in memory."""
        if self._memory is None:
            return self._files[tensor.data_ptr()]
        for name, copied in self._copies.items():
            if copied() is tensor:
                return name
        mapped = self._file_like(tensor)
        mapped.copy_(tensor)
        name = self._files[mapped.data_ptr()]
        self._copies[name] = weakref.ref(tensor)
        return name

    def open(self, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        """A tensor that a file of an earlier run holds.

        Raises:
            OSError: the file is not there, or of another size.
        """
        assert self._directory is not None
        path, wanted = self._directory / name, torch.Size(shape).numel() * dtype.itemsize
        if path.stat().st_size != wanted:  # mapping it would fill it up with zeros
            raise OSError(errno.EINVAL, f"{path.stat().st_size} bytes, not {wanted}")
        mapped = self._mapped(path, dtype, shape)
        if self._memory is None:
            return mapped
        tensor = self.like(mapped).copy_(mapped)
        self._copies[name] = weakref.ref(tensor)
        return tensor

    def keep(self, names: set[str]) -> None:
        """Drop all files but these."""
        if self._directory is not None:
            for path in self._directory.glob(f"*{SUFFIX}"):
                if path.name not in names:
                    path.unlink()
            self._files = {pointer: name for pointer, name in self._files.items() if name in names}
            self._copies = {name: copied for name, copied in self._copies.items() if name in names}

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
