# SPDX-License-Identifier: Apache-2.0
"""What is said of a run: while it goes on, and when it is over."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from auto_round.tuning.end_to_end import Outcome
from auto_round.tuning.result import BlockResult

__all__ = ["RunReport", "told_hurt", "told_unreached", "without_tensors"]

SHOWN = 3
"""Layers that a report names."""

STANDS_OUT = 2.0
"""Times the usual error that is worth a word."""


@dataclass(frozen=True)
class RunReport:
    """What a run took.

    Attributes:
        seconds: from opening the model to the last byte.
        peak_memory: largest resident set of the process, in bytes, None where the system does not tell.
        blocks: losses and times of every block; the codes are not kept here.
        end_to_end: losses before and after the steps of all blocks together, None where there were none.
    """

    seconds: float
    peak_memory: int | None
    blocks: tuple[BlockResult, ...]
    end_to_end: Outcome | None = None


def without_tensors(before: BlockResult | None, part: BlockResult) -> BlockResult:
    """What a report keeps of a block: of one whose layers come in several parts, all of them together."""
    seconds = part.seconds + (before.seconds if before is not None else 0.0)
    errors = dict(before.errors) if before is not None else {}
    errors |= {result.layer.name: result.error for result in part.layers if result.error is not None}
    return dataclasses.replace(part, layers=(), caches=(), changed={}, errors=errors, seconds=seconds)


def told_hurt(blocks: Sequence[BlockResult]) -> str | None:
    """Which layers lose much more than others, and how to spare them; None where none stands out."""
    errors = {name: error for block in blocks for name, error in block.errors.items()}
    if not errors:
        return None
    usual = statistics.median(errors.values())
    worst = sorted(errors, key=lambda name: -errors[name])[:SHOWN]
    worst = [name for name in worst if errors[name] > STANDS_OUT * usual]
    if not worst:
        return None
    told = ", ".join(f"{name} ({errors[name]:.2g})" for name in worst)
    spared = json.dumps({name: {"bits": 16} for name in worst})
    return (
        f"rounding costs {told} most of their output, where {usual:.2g} is usual; to leave them as they are: "
        f"--layer-config '{spared}'"
    )


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
