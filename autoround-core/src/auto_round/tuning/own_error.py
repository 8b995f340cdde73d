# SPDX-License-Identifier: Apache-2.0
"""What a layer gets wrong by itself, added to the error of its block.

A block's output on few samples leaves many ways to be right there and wrong elsewhere: what a query and a key get wrong
may cancel at the distances that calibration has and not at others. So every layer is also asked, a little, to answer
as it did before, for inputs x of the quantized model:

    loss = block error + PART * first block error * mean over layers of E / first E,    E = mean(((W' - W) x)^2)

The second part is the error that Nagel et al. 2020, arXiv:2004.10568, section 3.1, minimise for one layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from auto_round.tuning.layer import TunableLinear

__all__ = ["OwnErrors"]

PART = 0.3
"""Weight of the layers' own errors where all are as large as at first; 1 measured worse, and so did 0."""

TINY = 1e-12


class OwnErrors:
    """Collects what some layers get wrong while a batch runs.

    Attributes:
        scale: what the error of one layer counts for where it is as at first.
        mask: which tokens of the batch count, bool [batch, length], or None for all.
    """

    def __init__(self, layers: Sequence[TunableLinear], scale: float) -> None:
        """Args:
        layers: those that will report here.
        scale: the error of the block before the first step.
        """
        self.scale = scale * PART / len(layers)
        self.mask: torch.Tensor | None = None
        self._firsts: dict[int, float] = {}
        self._errors: dict[int, torch.Tensor] = {}

    def note(self, layer: TunableLinear, x: torch.Tensor, weight: torch.Tensor) -> None:
        """Take one call of a layer.

        Args:
            x: its input, as the quantized model sees it, [..., in_features].
            weight: its quantized weight, in the dtype it computes with.
        """
        x = x.detach()
        # Layers that see a selection of the tokens (experts) have another shape; they have no mask to apply.
        if self.mask is not None and x.shape[:-1] == self.mask.shape:
            x = x[self.mask]
        if x.numel():
            wrong = F.linear(x, weight - layer.wanted.to(weight.dtype))
            # The norm keeps its input for the backward pass and no float32 copy of it.
            error = torch.linalg.vector_norm(wrong, dtype=torch.float32).square() / wrong.numel()
            first = self._firsts.setdefault(id(layer), error.item() + TINY)
            self._errors[id(layer)] = error / first

    def take(self) -> torch.Tensor | float:
        """What the layers that ran since add to the loss."""
        total = sum(self._errors.values(), start=0.0)
        self._errors = {}
        return total * self.scale
