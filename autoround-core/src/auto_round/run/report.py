# SPDX-License-Identifier: Apache-2.0
"""What is said of a run: while it goes on, and when it is over."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from auto_round.tuning.result import BlockResult

__all__ = ["RunReport", "told_unreached", "without_tensors"]


@dataclass(frozen=True)
class RunReport:
    """What a run took.

    Attributes:
        seconds: from opening the model to the last byte.
        peak_memory: largest resident set of the process, in bytes, None where the system does not tell.
        blocks: losses and times of every block; the codes are not kept here.
    """

    seconds: float
    peak_memory: int | None
    blocks: tuple[BlockResult, ...]


def without_tensors(before: BlockResult | None, part: BlockResult) -> BlockResult:
    """What a report keeps of a block: of one whose layers come in several parts, all of them together."""
    seconds = part.seconds + (before.seconds if before is not None else 0.0)
    return dataclasses.replace(part, layers=(), caches=(), changed={}, seconds=seconds)


def told_unreached(block: BlockResult) -> Iterator[str]:
    """Sentences about layers that calibration hardly reached."""
    if block.unseen:
        yield (
            f"no calibration token reached {_listed(block.unseen)} of {block.name}: they are quantized by their "
            "weights alone; more text, or other text, would serve them better."
        )
    if block.scarce:
        yield (
            f"few calibration tokens reached {_listed(block.scarce)} of {block.name}: they have the best scales that "
            "were found for them and are not tuned, which would fit those few tokens alone; more text would serve them."
        )


def _listed(names: Sequence[str]) -> str:
    return f"{len(names)} layers ({names[0]}{' and others' if len(names) > 1 else ''})"
