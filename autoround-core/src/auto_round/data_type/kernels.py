# SPDX-License-Identifier: Apache-2.0
"""Kernels: what a data type does to every number of a tensor, and how a machine is taken over them.

As it stands, a kernel goes over the rows of a tensor some at a time, so that what one operation makes stays in a cache
for the next one. Compiled (`torch.compile`, Ansel et al. 2024, doi:10.1145/3620665.3640366) its operations become one
pass over all rows, which reads and writes each number once; that takes a C++ compiler, and some seconds for each.
Every value comes out the same; sums may be added up in another order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

import torch

from auto_round.errors import UnknownOptionError

__all__ = ["Room", "at_once", "check_compiler", "chunks", "compilable", "kernels_compiled"]

Given = ParamSpec("Given")
Found = TypeVar("Found")

_wanted: ContextVar[bool] = ContextVar("kernels_compiled", default=False)


def at_once(tensor: torch.Tensor) -> bool:
    """Whether kernels called now take all of a tensor at once: where that is not on a CPU, or compiled."""
    return tensor.device.type != "cpu" or torch.compiler.is_compiling() or _wanted.get()


def chunks(tensor: torch.Tensor, numbers: int) -> Iterator[slice]:
    """Slices along the first dimension of about so many numbers; all of it where that is not a CPU, or compiled.

    They are of one size, the last a few rows less: a small rest would take as many calls as the others.
    """
    rows = tensor.shape[0]
    if tensor.device.type != "cpu" or torch.compiler.is_compiling():
        if rows:  # and no loop: compiled code would be for this number of rows alone
            yield slice(0, rows)
        return
    parts = min(max(round(tensor.numel() / numbers), 1), max(rows, 1))
    step = max(-(-rows // parts), 1)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


class Room:
    """Memory that a kernel works in, made for its first chunk and used for all: new memory costs more than the work."""

    def __init__(self) -> None:
        self._made: dict[str, torch.Tensor] = {}

    def like(self, chunk: torch.Tensor, purpose: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Numbers of any value, shaped like a chunk.

        Each purpose has memory of its own. Seen again as numbers of another size, some of it would be in the cache of
        another core.
        """
        made = self._made.get(purpose)
        if made is None or made.shape[0] < chunk.shape[0]:
            made = torch.empty(chunk.shape, dtype=dtype, device=chunk.device)
            self._made[purpose] = made
        return made[: chunk.shape[0]]


def compilable(kernel: Callable[Given, Found]) -> Callable[Given, Found]:
    """Have a function compiled within `kernels_compiled`.

    Args:
        kernel: of tensors that have one shape but for their first dimension, the same every time it is called: groups,
            not the matrix that they are of. It is compiled once for any number of rows, and for one alone. It learns
            nothing itself. What it decides by the numbers in a tensor it must leave alone where
            `torch.compiler.is_compiling()`.
    """

    @functools.cache
    def compiled() -> Callable[Given, Found]:
        return torch.compile(kernel)

    @functools.wraps(kernel)
    def called(*args: Given.args, **named: Given.kwargs) -> Found:
        if torch.compiler.is_compiling() or not _wanted.get():  # part of another kernel, or left as it stands
            return kernel(*args, **named)
        for given in (*args, *named.values()):
            if isinstance(given, torch.Tensor) and given.ndim and given.shape[0] > 1:
                # documented, underscore or not; untold, the first number of rows would get code of its own
                torch._dynamo.maybe_mark_dynamic(given, 0)  # noqa: SLF001
        with torch.no_grad():
            return compiled()(*args, **named)

    return called


@contextmanager
def kernels_compiled(*, wanted: bool = True) -> Iterator[None]:
    """Compile kernels, each when it is first called in here; or leave them as they are."""
    before = _wanted.set(wanted)
    try:
        yield
    finally:
        _wanted.reset(before)


def check_compiler(device: torch.device) -> None:
    """Make sure that kernels can be compiled, by compiling one.

    Raises:
        UnknownOptionError: this machine has no C++ compiler, or the device is no CPU. Elsewhere quotients of compiled
            code may differ in their last bit from those that are stored.
    """
    if device.type != "cpu":
        raise UnknownOptionError(
            f"enable_torch_compile is for CPUs, not for {device.type}: compiled code may round otherwise there than "
            "what is stored; leave it out."
        )
    try:
        torch.compile(torch.neg)(torch.zeros(1))
    except RuntimeError as error:  # of a kind of torch's own, none of them public
        reason = str(error).strip().splitlines()[0]
        raise UnknownOptionError(
            f"enable_torch_compile needs a C++ compiler that torch finds, g++ or the one that CXX names: {reason}"
        ) from error
