# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: INP001 - scripts, no package
"""Clocks for machines that do other things besides."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

__all__ = ["clock", "turns"]


def clock() -> float:
    """Seconds; of one thread those it was running, which other work on the machine disturbs less."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def turns(jobs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The least seconds of each job, over rounds in which all take their turn, two times running."""
    least = dict.fromkeys(jobs, float("inf"))
    for _ in range(rounds):
        for name, job in [(name, job) for name, job in jobs.items() for _ in range(2)]:
            start = clock()
            job()
            least[name] = min(least[name], clock() - start)
    return least
