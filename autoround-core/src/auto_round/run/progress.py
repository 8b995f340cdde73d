# SPDX-License-Identifier: Apache-2.0
"""How far the work is and how long it will still take: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from auto_round.tuning.end_to_end import Outcome
    from auto_round.tuning.result import BlockResult

__all__ = ["BarProgress", "LineProgress", "SilentProgress", "default_progress"]


LINES = 20
"""Lines that a log gets of steps of all blocks together."""


class SilentProgress:
    """Says nothing."""

    def start(self, blocks: int, steps_per_block: int, done: int = 0, together: int = 0) -> None:
        """Nothing."""

    def step(self) -> None:
        """Nothing."""

    def block(self, result: BlockResult) -> None:
        """Nothing."""

    def end_to_end(self, steps: int, done: int) -> None:
        """Nothing."""

    def end_to_end_done(self, outcome: Outcome) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class LineProgress(SilentProgress):
    """One line per block on standard error, for logs."""

    def __init__(self) -> None:
        self._blocks = self._done = self._earlier = 0
        self._together = False
        self._then = ""
        self._began = time.monotonic()

    def start(self, blocks: int, steps_per_block: int, done: int = 0, together: int = 0) -> None:
        self._blocks, self._done, self._earlier, self._began = blocks, done, done, time.monotonic()
        # How long those will take nobody knows before the first of them.
        self._then = f", then {together} steps of all blocks together" if together else ""

    def block(self, result: BlockResult) -> None:
        self._done += 1
        spent = time.monotonic() - self._began
        left = spent / (self._done - self._earlier) * (self._blocks - self._done)
        print(
            f"[{self._done}/{self._blocks}] {_told(result)}, {result.seconds:.1f} s, {_clock(left)} left{self._then}",
            file=sys.stderr,
            flush=True,
        )

    def end_to_end(self, steps: int, done: int) -> None:
        self._blocks, self._done, self._earlier, self._began = steps, done, done, time.monotonic()
        self._together = True

    def step(self) -> None:
        if not self._together:
            return
        self._done += 1
        if self._done % max(1, self._blocks // LINES) == 0:
            left = (time.monotonic() - self._began) / (self._done - self._earlier) * (self._blocks - self._done)
            print(f"end to end: step {self._done} of {self._blocks}, {_clock(left)} left", file=sys.stderr, flush=True)

    def end_to_end_done(self, outcome: Outcome) -> None:
        print(_told_together(outcome), file=sys.stderr, flush=True)


class BarProgress(SilentProgress):
    """A bar on standard error, one line per finished block above it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._progress: Any = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task: Any = None
        self._next: Any = None
        self._steps = self._in_block = 0

    def start(self, blocks: int, steps_per_block: int, done: int = 0, together: int = 0) -> None:
        self._steps = steps_per_block
        self._progress.start()
        total, already = blocks * steps_per_block, done * steps_per_block
        self._task = self._progress.add_task("quantizing", total=total, completed=already)
        if together:
            self._next = self._progress.add_task("end to end", start=False, total=together)

    def step(self) -> None:
        self._in_block += 1
        self._progress.advance(self._task)

    def block(self, result: BlockResult) -> None:
        self._progress.advance(self._task, self._steps - self._in_block)
        self._in_block = 0
        self._progress.print(f"{_told(result)}, {result.seconds:.1f} s", highlight=False)

    def end_to_end(self, steps: int, done: int) -> None:
        self._task = self._next
        self._progress.reset(self._task, total=steps, completed=done)

    def end_to_end_done(self, outcome: Outcome) -> None:
        self._progress.print(_told_together(outcome), highlight=False)

    def close(self) -> None:
        self._progress.stop()


def default_progress() -> SilentProgress:
    """A bar if a person is watching, lines otherwise."""
    return BarProgress() if sys.stderr.isatty() else LineProgress()


def _told(result: BlockResult) -> str:
    name = result.name or "layers outside the blocks"
    if result.loss_before is None or result.loss_after is None:
        return f"{name}: {len(result.layers)} layers"
    return f"{name}: loss {result.loss_before:.3g} -> {result.loss_after:.3g} (step {result.kept_step})"


def _told_together(outcome: Outcome) -> str:
    kept = "" if outcome.after < outcome.before else ", so the blocks stay as they were"
    return f"end to end: divergence {outcome.before:.3g} -> {outcome.after:.3g}{kept}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
