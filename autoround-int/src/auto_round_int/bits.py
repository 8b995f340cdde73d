# SPDX-License-Identifier: Apache-2.0
"""Codes of b bits as one little-endian stream of bits, at memory speed.

Code i of a row lies in bits b i to b i + b - 1 of the row; 32 codes fill b words of 32 bits. For the widths that
divide 32 this is the layout of GPTQ's files, 32 / b codes in a word with the first in the lowest bits; for three bits
it is their 32 codes over three words, two of them cut by a word's end.

Eight codes, a byte each, are one 64-bit word; closing its gaps takes three steps of shifting and masking on all eight
at once: bytes to pairs, pairs to fours, fours to eight.
"""

from __future__ import annotations

import sys

import torch

__all__ = ["pack_rows", "unpack_rows"]


CHUNK = 1 << 17
"""Words worked on at a time, few enough to stay in a cache."""

_PART = {8: torch.int64, 4: torch.int32, 2: torch.int16}
"""The dtype as wide as eight codes of that many bits; bytes for the other widths."""


def _lanes(width: int, lane: int) -> int:
    """A 64-bit word with the lowest `width` bits of each `lane` bits set."""
    return sum(((1 << width) - 1) << at for at in range(0, 64, lane))


def pack_rows(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Close the gaps.

    Args:
        codes: uint8 [rows, n], each below 2^bits; n a multiple of 8, and n * bits of 32.
        bits: 1 to 8.

    Returns:
        int32 [rows, n * bits / 32].
    """
    _check_host()
    rows, count = codes.shape
    words = codes.reshape(-1).contiguous().view(torch.int64)  # flat, as the stride of a single row can be anything
    out = torch.empty(words.numel(), bits, dtype=torch.uint8, device=codes.device)
    part = _PART.get(bits, torch.uint8)
    pieces = out.view(part)
    for at in range(0, words.numel(), CHUNK):
        chunk = words[at : at + CHUNK]
        for lane in (8, 16, 32) if bits < 8 else ():
            width = lane * bits // 8
            low = _lanes(width, 2 * lane)
            chunk = (chunk & low).bitwise_or_((chunk >> (lane - width)).bitwise_and_(low << width))
        pieces[at : at + CHUNK] = chunk.view(part).reshape(len(chunk), -1)[:, : pieces.shape[1]]
    return out.reshape(-1).view(torch.int32).reshape(rows, count * bits // 32)


def unpack_rows(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Undo `pack_rows`: int32 [rows, count * bits / 32] to uint8 [rows, count]."""
    _check_host()
    part = _PART.get(bits, torch.uint8)
    pieces = words.reshape(-1).contiguous().view(torch.uint8).reshape(-1, bits).view(part)
    out = torch.zeros(len(pieces), dtype=torch.int64, device=words.device)
    for at in range(0, len(pieces), CHUNK):
        chunk = out[at : at + CHUNK]
        chunk.view(part).reshape(len(chunk), -1)[:, : pieces.shape[1]] = pieces[at : at + CHUNK]
        for lane in (32, 16, 8) if bits < 8 else ():
            width = lane * bits // 8
            low = _lanes(width, 2 * lane)
            high = (chunk << (lane - width)).bitwise_and_(low << lane)
            chunk.bitwise_and_(low).bitwise_or_(high)
    return out.view(torch.uint8).reshape(words.shape[0], count)


def _check_host() -> None:
    if sys.byteorder != "little":  # pragma: no cover  # views of bytes as words would come out reversed
        raise RuntimeError("packed integer weights need a little-endian host.")
