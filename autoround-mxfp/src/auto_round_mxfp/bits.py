# SPDX-License-Identifier: Apache-2.0
"""Codes of 2, 4 and 6 bits as one little-endian stream of bits, the first code in the lowest bits, at memory speed.

Two nibbles make a byte, the even element in the low one; four codes of two bits make a byte; four of six make three.
"""

from __future__ import annotations

import sys

import torch

__all__ = ["pack_codes", "unpack_codes"]

_SIX = ((0x3F, 0), (0x3F << 6, 2), (0x3F << 12, 4), (0x3F << 18, 6))
"""For each of four codes of six bits: where it lies in the stream, and how far that is from its byte."""


def pack_codes(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Close the gaps: uint8 [rows, n], each below 2^bits, to uint8 [rows, n * bits / 8]; n a multiple of 4."""
    _check_host()
    rows, count = codes.shape
    flat = codes.contiguous().reshape(-1)
    if bits == 4:
        pairs = flat.view(torch.int16)
        return (pairs >> 4).bitwise_or_(pairs).to(torch.uint8).reshape(rows, count // 2)
    fours = flat.view(torch.int32)
    if bits == 2:
        low = (fours >> 6).bitwise_or_(fours).bitwise_and_(0x000F000F)
        return (low >> 12).bitwise_or_(low).to(torch.uint8).reshape(rows, count // 4)
    stream = torch.zeros_like(fours)
    for mask, shift in _SIX:
        stream |= (fours >> shift) & mask
    return stream.view(torch.uint8).reshape(-1, 4)[:, :3].reshape(rows, count * 3 // 4)


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
