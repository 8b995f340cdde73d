# SPDX-License-Identifier: Apache-2.0
"""The processes that share one run: `torchrun` starts them, torch.distributed connects them.

Every rank keeps all of what it decides by, and does its part of the work; what they add up is the same on all of them
afterwards. One process alone is the same code with nobody to talk to.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from auto_round.errors import AutoRoundError
from auto_round.model.weights import first_line

__all__ = ["Ranks", "joined_ranks"]


@dataclass(frozen=True)
class Ranks:
    """Attributes:
    rank: which of them this process is; 0 is the one that writes.
    size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def writes(self) -> bool:
        """Whether this process writes files and says how far the work is."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """This rank's share of a number of things, a run of them; shares differ by one at most."""
        return self._parts(count)[self.rank]

    def _parts(self, count: int) -> list[slice]:
        ends = [count * r // self.size for r in range(self.size + 1)]
        return [slice(start, end) for start, end in itertools.pairwise(ends)]

    def add_up(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks, in place."""
        if self.size > 1:
            _with_others(dist.all_reduce, tensor)
        return tensor

    def least(self, tensor: torch.Tensor) -> torch.Tensor:
        """The least over all ranks, in place."""
        if self.size > 1:
            _with_others(dist.all_reduce, tensor, op=dist.ReduceOp.MIN)
        return tensor

    def most(self, tensor: torch.Tensor) -> torch.Tensor:
        """The greatest over all ranks, in place."""
        if self.size > 1:
            _with_others(dist.all_reduce, tensor, op=dist.ReduceOp.MAX)
        return tensor

    def complete(self, tensor: torch.Tensor, unit: int) -> None:
        """Hand everybody the rows that each rank filled, its `part` of the runs of `unit` rows, in place."""
        if self.size == 1:
            return
        for rank, runs in enumerate(self._parts(-(-len(tensor) // unit))):
            rows = tensor[runs.start * unit : runs.stop * unit]
            if len(rows):
                # As bytes: not every backend knows every dtype.
                _with_others(dist.broadcast, rows.view(torch.uint8), src=rank)

    def share(self, tensor: torch.Tensor) -> None:
        """Give everybody what the rank that writes has, in place."""
        if self.size > 1:
            _with_others(dist.broadcast, tensor.view(torch.uint8), src=0)

    def hand_over(self, data: bytes | None, source: int) -> bytes | None:
        """Bytes from a rank to the one that writes; None on all others."""
        if self.rank == source == 0:
            return data
        if self.rank == source:
            assert data is not None
            _with_others(dist.send, torch.tensor([len(data)]), 0)
            _with_others(dist.send, torch.frombuffer(bytearray(data), dtype=torch.uint8), 0)
        elif self.rank == 0:
            size = torch.zeros(1, dtype=torch.int64)
            _with_others(dist.recv, size, source)
            received = torch.empty(int(size), dtype=torch.uint8)
            _with_others(dist.recv, received, source)
            return received.numpy().tobytes()
        return None

    def together(self) -> None:
        """Wait until everybody is here."""
        if self.size > 1:
            self.add_up(torch.zeros(1))  # on the CPU, whatever else the processes compute on

    def agree(self, value: int) -> int:
        """What the rank that writes says."""
        if self.size == 1:
            return value
        told = torch.tensor([value])
        _with_others(dist.broadcast, told, src=0)
        return int(told)


def _with_others(call: Callable[..., object], *args: object, **options: object) -> None:
    """Something of torch.distributed.

    Raises:
        AutoRoundError: another process is gone; what is finished is safe with the one that writes.
    """
    try:
        call(*args, **options)
    except RuntimeError as error:
        raise AutoRoundError(
            f"another process of this run was lost ({first_line(error)}); the same command goes on from what is "
            "finished."
        ) from error


@contextmanager
def joined_ranks(device: torch.device) -> Iterator[Ranks]:
    """The ranks this process was started among; it joins them if it has not, and leaves them afterwards.

    A process that `torchrun` did not start, and that has no process group, is alone.
    """
    if dist.is_available() and dist.is_initialized():
        yield Ranks(dist.get_rank(), dist.get_world_size())
        return
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
        yield Ranks()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    except (RuntimeError, ValueError) as error:  # ValueError: something is missing from the environment
        raise AutoRoundError(f"the processes of this run cannot be connected: {first_line(error)}") from error
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
