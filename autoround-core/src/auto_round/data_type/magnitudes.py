# SPDX-License-Identifier: Apache-2.0
"""The largest magnitudes of groups, of which scales are made."""

from __future__ import annotations

import torch

from auto_round.data_type.kernels import Room, chunks

__all__ = ["largest_magnitudes"]


def largest_magnitudes(groups: torch.Tensor, over: tuple[int, ...], numbers: int) -> torch.Tensor:
    """The largest magnitude of each group.

    Read as whole numbers, bits of magnitudes are in the order of magnitudes, NaN above all, and a CPU finds the
    largest several times faster. Compiled code takes bits one by one, and compares floats.

    Args:
        groups: floats of 16 or 32 bits.
        over: the dimensions that are one group, which stay with size 1; where the first is among them, it is the number
            of chunks.
        numbers: of a chunk, see `chunks`.

    Returns:
        float32.
    """
    if torch.compiler.is_compiling():
        return groups.float().abs().amax(over, keepdim=True)
    word = torch.int16 if groups.dtype.itemsize == 2 else torch.int32
    words, found, room = groups.view(word), [], Room()
    for rows in chunks(words, numbers):
        sizes = torch.bitwise_and(words[rows], torch.iinfo(word).max, out=room.like(words[rows], "sizes", word))
        found.append(sizes.amax(over, keepdim=True))
    shape = [1 if n in over else size for n, size in enumerate(groups.shape)]
    joined = torch.cat(found) if found else torch.zeros(shape, dtype=word, device=groups.device)
    return joined.view(groups.dtype).float()
