# SPDX-License-Identifier: Apache-2.0
"""How much goes through a whole model at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["WholePass", "whole_pass"]

LOGITS = 1 << 27
"""Logits of one pass, 1.3 GB in bfloat16; a batch that has more is run in parts, and rounds its weights for each."""


@dataclass(frozen=True)
class WholePass:
    """Attributes:
    samples: of a batch, that are run at a time.
    tokens: of these.
    logits: of them.
    """

    samples: int
    tokens: int
    logits: int


def whole_pass(model: Any, batch_size: int, length: int) -> WholePass:
    """So many samples of a batch that their logits are not too many.

    Args:
        model: its modules need not be there yet.
        batch_size, length: of what there is to run.
    """
    vocabulary = model.config.get_text_config().vocab_size
    samples = min(batch_size, max(1, LOGITS // (length * vocabulary)))
    tokens = samples * length
    return WholePass(samples, tokens, tokens * vocabulary)
