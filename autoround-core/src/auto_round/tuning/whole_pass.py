# SPDX-License-Identifier: Apache-2.0
"""How much goes through a whole model at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from auto_round.calibration.attention import samples_kept, scores_kept

__all__ = ["WholePass", "whole_pass"]

LOGITS = 1 << 26
"""Logits of one pass; a batch that has more is run in parts."""


@dataclass(frozen=True)
class WholePass:
    """Attributes:
    samples: of a batch, that are run at a time.
    tokens: of these.
    scores: of attention, that each block keeps of them; 0 where it is computed as the model says.
    logits: of them.
    """

    samples: int
    tokens: int
    scores: int
    logits: int


def whole_pass(model: Any, dtype: torch.dtype, device: torch.device, batch_size: int, length: int) -> WholePass:
    """So many samples of a batch that their logits are not too many, and attention can be in steps where it can at all.

    Args:
        model: its modules need not be there yet.
        dtype: in which it computes.
        device: where it does.
        batch_size, length: of what there is to run.
    """
    vocabulary = model.config.get_text_config().vocab_size
    few = max(1, LOGITS // (length * vocabulary))
    samples = min(batch_size, few, samples_kept(model, dtype, device, length) or few)
    tokens = samples * length
    return WholePass(samples, tokens, scores_kept(model, dtype, device, samples, length), tokens * vocabulary)
