# SPDX-License-Identifier: Apache-2.0
"""Codes of b bits as one little-endian stream of bits, at memory speed.

Code i of a row lies in bits b i to b i + b - 1 of the row; 32 codes fill b words of 32 bits. For the widths that
divide 32 this is the layout of GPTQ's files, 32 / b codes in a word with the first in the lowest bits; for three bits
it is their 32 codes over three words, two of them cut by a word's end.

Where b divides 8, two bytes are moved together into one until all are full. Otherwise eight codes, a byte each, are one
64-bit word; closing its gaps takes three steps of shifting and masking on all eight at once: bytes to pairs, pairs to
fours, fours to eight.
"""

from __future__ import annotations

import sys

import torch

__all__ = ["pack_rows", "unpack_rows"]


CHUNK = 1 << 20
"""Bytes worked on at a time, few enough to stay in a cache."""

_PART = {6: torch.int16}
"""The dtype that eight codes of that many bits are a whole number of; bytes for the other widths."""


def _lanes(width: int, lane: int) -> int:
    """A 64-bit word with the lowest `width` bits of each `lane` bits set."""
    return sum(((1 << width) - 1) << at for at in range(0, 64, lane))


def pack_rows(codes: torch.Tensor, bits: int, turned: int = 0) -> torch.Tensor:
    """Close the gaps.

    Args:
        codes: uint8 [rows, n]; n a multiple of 8, and n * bits of 32. What is above the lowest bits is left out.
        bits: 1 to 8.
        turned: bits that are turned in every code: the highest one makes codes from zero on of signed ones.

    Returns:
        int32 [rows, n * bits / 32].
    """
    _check_host()
    rows, count = codes.shape
    stream = codes.reshape(-1).contiguous()  # flat, as the stride of a single row can be anything
    width = bits
    while width in (1, 2, 4):
        stream, width, turned = _joined(stream, width, turned), 2 * width, 0
    if width < 8:
        stream = _closed(stream, width, turned)
    elif turned:
        stream = stream ^ turned
    return stream.view(torch.int32).reshape(rows, count * bits // 32)


def _joined(stream: torch.Tensor, width: int, turned: int) -> torch.Tensor:
    """Two bytes that hold so many bits to one that holds both, uint8 twice."""
    pairs, low = stream.view(torch.int16), (1 << width) - 1
    out = torch.empty(len(pairs), dtype=torch.uint8, device=stream.device)
    for at in range(0, len(pairs), CHUNK // 2):
        second = pairs[at : at + CHUNK // 2] ^ (turned * 0x101)
        first = second & low
        out[at : at + CHUNK // 2] = second.bitwise_right_shift_(8 - width).bitwise_and_(low << width).bitwise_or_(first)
    return out


def _closed(stream: torch.Tensor, bits: int, turned: int) -> torch.Tensor:
    """Eight bytes to so many, for any number of bits, uint8 twice."""
    words = stream.view(torch.int64)
    part = _PART.get(bits, torch.uint8)
    out = torch.empty(len(words), bits, dtype=torch.uint8, device=stream.device)
    pieces = out.view(part)
    for at in range(0, len(words), CHUNK // 8):
        chunk = words[at : at + CHUNK // 8] ^ _lanes(1, 8) * turned
        for lane in (8, 16, 32):
            width = lane * bits // 8
            low = _lanes(width, 2 * lane)
            chunk = (chunk & low).bitwise_or_((chunk >> (lane - width)).bitwise_and_(low << width))
        pieces[at : at + CHUNK // 8] = chunk.view(part).reshape(len(chunk), -1)[:, : pieces.shape[1]]
    return out.reshape(-1)


def unpack_rows(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Undo `pack_rows`: int32 [rows, count * bits / 32] to uint8 [rows, count]."""
    _check_host()
    stream = words.reshape(-1).contiguous().view(torch.uint8)
    if 8 % bits:
        stream = _opened(stream, bits)
    else:
        width = 8
        while width > bits:
            width //= 2
            stream = _parted(stream, width)
    return stream.reshape(words.shape[0], count)


def _parted(stream: torch.Tensor, width: int) -> torch.Tensor:
    """Undo `_joined`."""
    out = torch.empty(len(stream), dtype=torch.int16, device=stream.device)
    for at in range(0, len(stream), CHUNK // 2):
        pairs = out[at : at + CHUNK // 2].copy_(stream[at : at + CHUNK // 2])
        pairs.bitwise_or_(pairs << (8 - width)).bitwise_and_(((1 << width) - 1) * 0x101)
    return out.view(torch.uint8)


def _opened(stream: torch.Tensor, bits: int) -> torch.Tensor:
    """Undo `_closed`."""
    part = _PART.get(bits, torch.uint8)
    pieces = stream.reshape(-1, bits).view(part)
    out = torch.zeros(len(pieces), dtype=torch.int64, device=stream.device)
    for at in range(0, len(pieces), CHUNK // 8):
        chunk = out[at : at + CHUNK // 8]
        chunk.view(part).reshape(len(chunk), -1)[:, : pieces.shape[1]] = pieces[at : at + CHUNK // 8]
        for lane in (32, 16, 8):
            width = lane * bits // 8
            low = _lanes(width, 2 * lane)
            high = (chunk << (lane - width)).bitwise_and_(low << lane)
            chunk.bitwise_and_(low).bitwise_or_(high)
    return out.view(torch.uint8)


def _check_host() -> None:
    if sys.byteorder != "little":  # pragma: no cover  # views of bytes as words would come out reversed
        raise RuntimeError("packed integer weights need a little-endian host.")
