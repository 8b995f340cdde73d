# SPDX-License-Identifier: Apache-2.0
"""Straight-through estimators: round in the forward pass, pretend nothing happened in the backward pass.

Bengio, Léonard and Courville, 2013, "Estimating or Propagating Gradients Through Stochastic Neurons", arXiv:1308.3432.
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["round_ste"]


class _RoundSTE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0]


def round_ste(x: torch.Tensor) -> torch.Tensor:
    """Round half to even, with the gradient of the identity; same shape and dtype."""
    result: torch.Tensor = _RoundSTE.apply(x)
    return result
