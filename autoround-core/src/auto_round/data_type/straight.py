# SPDX-License-Identifier: Apache-2.0
"""The gradient of what is quantized without anything being learnt in it: activations.

It goes straight through, and stops where something was cut off (Bengio, Léonard and Courville, 2013, arXiv:1308.3432).
Scales are constants to it.
"""

from __future__ import annotations

import torch

from auto_round.data_type.kernels import chunks, compilable

__all__ = ["straight_through"]

CHUNK = 1 << 19
"""Elements worked on at a time on a CPU, so that what is made of them stays in a cache."""


@compilable
def straight_through(outer: torch.Tensor, groups: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """The gradient where magnitudes are at most the largest that their group keeps, else zero.

    Args:
        outer: the gradient by the rounded tensor, [groups, group size].
        groups: what was rounded, of the same shape.
        high: the largest magnitude that was not cut off, float32 [groups, 1], not negative.

    Returns:
        in shape and dtype of `outer`.
    """
    as_words = outer.dtype == groups.dtype and groups.dtype in (torch.bfloat16, torch.float32)
    if torch.compiler.is_compiling() or not as_words:
        return torch.where(groups.abs().float() <= high, outer, 0.0)
    narrow = groups.dtype == torch.bfloat16
    word = torch.int16 if narrow else torch.int32
    # Bits of magnitudes are in the order of magnitudes, and a bfloat16 is the upper half of a float32.
    limit = high.contiguous().view(torch.int32)
    limit = (limit >> 16).to(torch.int16) + 1 if narrow else limit + 1
    out = torch.empty_like(outer)
    words = [tensor.view(word) for tensor in (outer, groups, out)]
    for rows in chunks(groups, CHUNK):
        gradient, part, found = (tensor[rows] for tensor in words)
        bound = limit[rows]
        # A negative difference, shifted, is all ones. Comparing, and masking with booleans, would take longer.
        torch.bitwise_and(part, torch.iinfo(word).max, out=found)
        found.sub_(bound).bitwise_right_shift_(8 * word.itemsize - 1).bitwise_and_(gradient)
    return out
