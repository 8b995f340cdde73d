# SPDX-License-Identifier: Apache-2.0
"""Memory that is freed and wanted again in the next step: whether it goes back to the system in between.

A tuning step frees and takes about seven bytes for each weight of a block. Where the system clears new pages every
time, that is up to a third of the step.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["ask_for_large_pages", "freed_memory_kept", "freed_memory_returned", "give_back_freed_memory"]

# Names of malloc.h of glibc, see mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4

NEVER = 2**31 - 1
"""The largest number `mallopt` takes."""

ALONE = 1 << 20
"""Bytes from which memory is mapped by itself, and so goes back as soon as it is free, where that is asked for."""

USUAL = ((M_MMAP_MAX, 65536), (M_MMAP_THRESHOLD, 32 << 20), (M_TRIM_THRESHOLD, 64 << 20))
"""What glibc comes to by itself in a process that frees large blocks, which those of tensors are."""


def ask_for_large_pages() -> None:
    """Have torch ask for pages of 2 MB, of which fewer are made; for who owns the process, before torch is there."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Have this process keep what it frees, until the end or `give_back_freed_memory`.

    Nothing happens where the C library is not glibc, or where the user has set a variable of its allocator.
    """
    with _allocating((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, NEVER)):
        yield


@contextmanager
def freed_memory_returned() -> Iterator[None]:
    """Have this process return what it frees at once, for the least memory; slower. Exceptions as above."""
    with _allocating((M_MMAP_THRESHOLD, ALONE), (M_TRIM_THRESHOLD, ALONE)):
        yield


@contextmanager
def _allocating(*settings: tuple[int, int]) -> Iterator[None]:
    library = _glibc()
    if library is None or any(name.startswith("MALLOC_") for name in os.environ):
        yield
        return
    for name, value in settings:
        library.mallopt(name, value)
    try:
        yield
    finally:
        for name, value in USUAL:
            library.mallopt(name, value)
        give_back_freed_memory()


def give_back_freed_memory(*, beyond: int = 0) -> None:
    """Return what is free to the system, so that a peak is that of one part of the work and not of all of them.

    Args:
        beyond: bytes that may stay: nothing is returned while no more are free. What is taken again in the next step
            has to be cleared again.
    """
    library = _glibc()
    if library is not None and _free(library) >= beyond:
        library.malloc_trim(0)


class _Told(ctypes.Structure):
    """What glibc tells of its memory in bytes, see mallinfo2(3)."""

    _fields_ = [(name, ctypes.c_size_t) for name in
                ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
                 "keepcost")]  # fmt: skip


def _free(library: Any) -> float:
    """Bytes that are kept and in no use; endless where that is not told."""
    if not hasattr(library, "mallinfo2"):  # before glibc 2.33
        return float("inf")
    library.mallinfo2.restype = _Told
    free: int = library.mallinfo2().fordblks
    return free


def _glibc() -> Any:
    """The C library of this process, None where it is another one."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
