# SPDX-License-Identifier: Apache-2.0
"""How far a block's answer is from the one that is wanted, with its gradient: e = sum((y - t)^2), de/dy = 2 (y - t).

In three passes over the numbers, where operation by operation there are a dozen, half of them over temporaries.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

__all__ = ["sum_of_squares"]

PIECE = 1 << 18
"""Squares added up in one sum of float32; the sums are added to each other."""


def sum_of_squares(output: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Sum of squared differences, float32 scalar, differentiable once in the output.

    Args:
        output, target: [samples, length, features], of any float dtypes; differences are float32.
        mask: which tokens count, bool [samples, length], or None for all.
    """
    error: torch.Tensor = _SumOfSquares.apply(output, target, mask)
    return error


class _SumOfSquares(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        wrong = output.to(torch.float32, copy=True, memory_format=torch.contiguous_format).sub_(target)
        if mask is not None:
            wrong.mul_(mask.unsqueeze(-1))
        ctx.save_for_backward(wrong)
        ctx.dtype = output.dtype
        return torch.stack([piece.dot(piece) for piece in wrong.view(-1).split(PIECE)]).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (wrong,) = ctx.saved_tensors
        return (wrong * (2 * gradient)).to(ctx.dtype), None, None
