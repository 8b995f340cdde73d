# SPDX-License-Identifier: Apache-2.0
"""How far next-token distributions are apart, from logits, some tokens at a time.

With x and y the logits of the original and of the quantized model, p = softmax(x) and q = softmax(y),

    KL(p || q) = sum(p (log p - log q)),    its gradient by y = q - p

(Kullback, Leibler 1951; Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 2.1). Both come out of one pass over a
few tokens' logits, which a CPU's caches hold, so that of a whole vocabulary's worth of numbers for every token only
logits and their gradients ever exist, in the model's own dtype.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable

__all__ = ["divergence", "exponentials", "some_tokens"]

LOGITS_CPU, LOGITS_ELSEWHERE = 1 << 17, 1 << 26
"""Worked on at a time: 512 KiB in float32, several of which fit into a CPU's cache."""


def divergence(wanted: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """Sum over tokens of KL(softmax(wanted) || softmax(found)), in nats, differentiable once in `found`.

    Args:
        wanted, found: logits [..., vocabulary].

    Returns:
        float32 scalar.
    """
    total: torch.Tensor = _Divergence.apply(found, wanted)
    return total


def some_tokens(logits: torch.Tensor) -> Iterator[slice]:
    """Of logits [tokens, vocabulary], as many tokens at a time as are best worked on at once."""
    size = LOGITS_CPU if logits.device.type == "cpu" else LOGITS_ELSEWHERE
    count = max(1, size // logits.shape[-1])
    return (slice(start, start + count) for start in range(0, len(logits), count))


def exponentials(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x - max(x) and exp(x - max(x)) of logits x [tokens, vocabulary], float32.

    That is all of a softmax but its division, which not everybody needs; `log_softmax` and `exp` take longer.
    """
    shifted = logits.to(torch.float32, copy=True)
    shifted -= shifted.amax(-1, keepdim=True)
    return shifted, shifted.exp()


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        x, y = (logits.reshape(-1, logits.shape[-1]) for logits in (wanted, found))
        gradient = torch.empty_like(y) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), dtype=torch.float64, device=found.device)
        for some in some_tokens(y):
            (log_p, p), (log_q, q) = (exponentials(logits[some]) for logits in (x, y))
            p_sum, q_sum = (numbers.sum(-1, keepdim=True) for numbers in (p, q))
            p /= p_sum
            if gradient is not None:
                gradient[some] = q.div_(q_sum).sub_(p)
            total += log_p.sub_(log_q).mul_(p).sum(-1, keepdim=True).add_(q_sum.log_()).sub_(p_sum.log_()).sum()
        if gradient is not None:
            ctx.save_for_backward(gradient.view(found.shape))
        return total.float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer, None  # a scalar leaves the dtype as it is
