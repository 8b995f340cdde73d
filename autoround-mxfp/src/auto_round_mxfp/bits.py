# SPDX-License-Identifier: Apache-2.0
"""Codes of 2, 4 and 6 bits as one little-endian stream of bits, the first code in the lowest bits, at memory speed.

Two nibbles make a byte, the even element in the low one; four codes of two bits make a byte; four of six make three.
"""

from __future__ import annotations

import sys

import torch

from auto_round.data_type.kernels import Room, chunks

__all__ = ["pack_codes", "unpack_codes"]

CHUNK = 1 << 18
"""Words worked on at a time on a CPU, few enough to stay in its caches."""

_SIX = ((0x3F, 0), (0x3F << 6, 2), (0x3F << 12, 4), (0x3F << 18, 6))
"""For each of four codes of six bits: where it lies in the stream, and how far that is from its byte."""


def pack_codes(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Close the gaps: uint8 [rows, n], each below 2^bits, to uint8 [rows, n * bits / 8]; n a multiple of 4."""
    _check_host()
    rows, count = codes.shape
    flat = codes.contiguous().reshape(-1)
    if bits in (4, 2):
        return _joined(flat, bits).reshape(rows, count * bits // 8)
    fours = flat.view(torch.int32)
    stream = torch.zeros_like(fours)
    for mask, shift in _SIX:
        stream |= (fours >> shift) & mask
    return stream.view(torch.uint8).reshape(-1, 4)[:, :3].reshape(rows, count * 3 // 4)


def _joined(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Two codes of four bits in each byte, or four of two, uint8 twice."""
    words = codes.view(torch.int16 if bits == 4 else torch.int32)
    out, room = torch.empty(words.shape, dtype=torch.uint8, device=codes.device), Room()
    for part in chunks(words, CHUNK):
        word = words[part]
        joined = torch.bitwise_right_shift(word, 8 - bits, out=room.like(word, "joined", word.dtype)).bitwise_or_(word)
        if bits == 2:
            joined.bitwise_and_(0x000F000F)
            further = torch.bitwise_right_shift(joined, 12, out=room.like(word, "further", word.dtype))
            joined.bitwise_or_(further)
        out[part] = joined  # its lowest byte
    return out


def unpack_codes(stream: torch.Tensor, bits: int) -> torch.Tensor:
    """Undo `pack_codes`: uint8 [rows, m] to uint8 [rows, m * 8 / bits]."""
    _check_host()
    rows, count = stream.shape
    flat = stream.contiguous().reshape(-1)
    if bits == 4:
        pairs = flat.to(torch.int16)
        pairs = (pairs << 4).bitwise_or_(pairs).bitwise_and_(0x0F0F)
        return pairs.view(torch.uint8).reshape(rows, count * 2)
    if bits == 2:
        fours = flat.to(torch.int32)
        fours = (fours << 12).bitwise_or_(fours).bitwise_and_(0x000F000F)
        fours = (fours << 6).bitwise_or_(fours).bitwise_and_(0x03030303)
        return fours.view(torch.uint8).reshape(rows, count * 4)
    padded = torch.zeros(flat.numel() // 3, 4, dtype=torch.uint8, device=flat.device)
    padded[:, :3] = flat.reshape(-1, 3)
    words, fours = padded.reshape(-1).view(torch.int32), torch.zeros_like(padded.reshape(-1).view(torch.int32))
    for mask, shift in _SIX:
        fours |= (words & mask) << shift
    return fours.view(torch.uint8).reshape(rows, count * 4 // 3)


def _check_host() -> None:
    if sys.byteorder != "little":  # pragma: no cover  # views of bytes as words would come out reversed
        raise RuntimeError("packed microscaling weights need a little-endian host.")
