# SPDX-License-Identifier: Apache-2.0
"""How blocks compute attention while calibration data flows through them.

torch's fused kernel for CPUs keeps no scores, which saves memory where they are many. Where they are few it takes up to
twice as long in bfloat16 as two products and a softmax, forward and backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["attention_in_steps", "samples_kept", "scores_kept"]

LARGEST = 1 << 22
"""Scores of a batch, all heads together, up to which they are kept: 8 MiB in bfloat16."""

FUSED, IN_STEPS = "sdpa", "eager"
"""As transformers calls them. It fuses where the user or the model did not ask for anything else."""


def scores_kept(model: Any, dtype: torch.dtype, device: torch.device, batch_size: int, length: int) -> int:
    """Scores that each block keeps between the steps of its attention; 0 where it is to be as the model says.

    Args:
        model: its modules need not be there yet.
        dtype: in which blocks compute.
        device: where they do.
        batch_size, length: of what they are fed at a time.
    """
    if device.type != "cpu" or dtype != torch.bfloat16 or not _replaceable(model):
        return 0
    scores = (getattr(model.config, "num_attention_heads", None) or 0) * batch_size * length**2
    return scores if scores <= LARGEST else 0


def samples_kept(model: Any, dtype: torch.dtype, device: torch.device, length: int) -> int:
    """Samples of this length that can be fed at a time so that their scores are kept; 0 where none can."""
    scores = scores_kept(model, dtype, device, 1, length)
    return LARGEST // scores if scores else 0


@contextmanager
def attention_in_steps(model: Any) -> Iterator[None]:
    """Have a model compute attention in steps, as its own code spells it out, and afterwards as before.

    A model whose attention is another one than torch's, or no matter of its config alone, stays as it is.
    """
    if not _replaceable(model):
        yield
        return
    model.set_attn_implementation(IN_STEPS)
    try:
        yield
    finally:
        model.set_attn_implementation(FUSED)


def _replaceable(model: Any) -> bool:
    """Whether a model's attention is torch's fused one, and can be another."""
    config = getattr(model, "config", None)
    fused = getattr(config, "_attn_implementation", None) == FUSED and not getattr(config, "sub_configs", None)
    # A class whose attention cannot be set only warns when it is.
    return fused and model._can_set_attn_implementation()  # noqa: SLF001
