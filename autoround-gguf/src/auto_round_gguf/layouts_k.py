# SPDX-License-Identifier: Apache-2.0
"""The layouts of super-blocks: 256 weights, their groups' scales packed beside them."""

from __future__ import annotations

import torch

from auto_round_gguf.sections import (
    Layout,
    Parts,
    from_halves,
    join,
    split_nibbles,
    spread,
    stack,
    to_halves,
    two_nibbles,
)

__all__ = ["LAYOUTS_K"]


def _pairs(codes: torch.Tensor) -> torch.Tensor:
    """Four bits each of 256 codes in 128 bytes: of every 64, the first 32 in the low nibbles."""
    return stack((codes & 15).reshape(-1, 4, 2, 32), 4).reshape(-1, 128)


def _unpairs(data: torch.Tensor) -> torch.Tensor:
    return spread(data.reshape(-1, 4, 32), 4).reshape(-1, 256)


def _quads(codes: torch.Tensor) -> torch.Tensor:
    """Two bits each of 256 codes in 64 bytes: of every 128, four runs of 32 from the lowest bits up."""
    return stack((codes & 3).reshape(-1, 2, 4, 32), 2).reshape(-1, 64)


def _unquads(data: torch.Tensor) -> torch.Tensor:
    return spread(data.reshape(-1, 2, 32), 2).reshape(-1, 256)


def _singles(bits: torch.Tensor) -> torch.Tensor:
    """One bit each of 256 codes in 32 bytes: run n of 32 in bit n."""
    return stack(bits.reshape(-1, 8, 32), 1)


def _unsingles(data: torch.Tensor) -> torch.Tensor:
    return spread(data, 1).reshape(-1, 256)


class _Q2(Layout):
    def pack(self, parts: Parts) -> torch.Tensor:
        scales = two_nibbles(parts["scale"], parts["minimum"])
        supers = (from_halves(parts["super_scale"]), from_halves(parts["super_minimum"]))
        return join(scales, _quads(parts["codes"]), *supers)

    def unpack(self, data: torch.Tensor) -> Parts:
        scale, minimum = split_nibbles(data[:, :16])
        supers = {"super_scale": to_halves(data[:, 80:82]), "super_minimum": to_halves(data[:, 82:84])}
        return {"codes": _unquads(data[:, 16:80]), "scale": scale, "minimum": minimum, **supers}


class _Q3(Layout):
    """Scales keep six bits, from 0 on: low nibbles of 16 in eight bytes, high pairs of bits in four."""

    def pack(self, parts: Parts) -> torch.Tensor:
        codes, scale = parts["codes"], (parts["scale"] + 32).to(torch.uint8)
        lower = two_nibbles(scale[:, :8], scale[:, 8:])
        upper = stack((scale >> 4).reshape(-1, 4, 4), 2)
        return join(_singles(codes >> 2), _quads(codes), lower, upper, from_halves(parts["super_scale"]))

    def unpack(self, data: torch.Tensor) -> Parts:
        codes = _unquads(data[:, 32:96]) | (_unsingles(data[:, :32]) << 2)
        lower = torch.cat(split_nibbles(data[:, 96:104]), 1)
        upper = spread(data[:, 104:108], 2).reshape(-1, 16)
        scale = (lower | (upper << 4)).to(torch.int8) - 32
        return {"codes": codes, "scale": scale, "super_scale": to_halves(data[:, 108:110])}


def _six_bit_pairs(scale: torch.Tensor, minimum: torch.Tensor) -> torch.Tensor:
    """Eight scales and eight minima of six bits in twelve bytes.

    The first four of each lie in the low six bits of bytes 0-3 and 4-7, whose upper two bits hold the upper bits of the
    last four; their low nibbles are bytes 8-11.
    """
    first = (scale[:, :4] & 63) | ((scale[:, 4:] >> 4) << 6)
    second = (minimum[:, :4] & 63) | ((minimum[:, 4:] >> 4) << 6)
    return join(first, second, two_nibbles(scale[:, 4:], minimum[:, 4:]))


def _unsix(data: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    first, second, (scale, minimum) = data[:, :4], data[:, 4:8], split_nibbles(data[:, 8:12])
    return (
        join(first & 63, scale | ((first >> 6) << 4)),
        join(second & 63, minimum | ((second >> 6) << 4)),
    )


class _Q45(Layout):
    def __init__(self, fifth: bool) -> None:
        self._fifth = fifth

    def pack(self, parts: Parts) -> torch.Tensor:
        supers = (from_halves(parts["super_scale"]), from_halves(parts["super_minimum"]))
        fifth = (_singles(parts["codes"] >> 4),) if self._fifth else ()
        return join(*supers, _six_bit_pairs(parts["scale"], parts["minimum"]), *fifth, _pairs(parts["codes"]))

    def unpack(self, data: torch.Tensor) -> Parts:
        scale, minimum = _unsix(data[:, 4:16])
        codes = _unpairs(data[:, -128:])
        if self._fifth:
            codes |= _unsingles(data[:, 16:48]) << 4
        supers = {"super_scale": to_halves(data[:, :2]), "super_minimum": to_halves(data[:, 2:4])}
        return {"codes": codes, "scale": scale, "minimum": minimum, **supers}


class _Q6(Layout):
    """Low nibbles of every 128: the first 64 below, the last 64 above; then pairs of upper bits."""

    def pack(self, parts: Parts) -> torch.Tensor:
        codes = parts["codes"]
        lower = stack((codes & 15).reshape(-1, 2, 2, 64), 4).reshape(-1, 128)
        return join(lower, _quads(codes >> 4), parts["scale"].view(torch.uint8), from_halves(parts["super_scale"]))

    def unpack(self, data: torch.Tensor) -> Parts:
        lower = spread(data[:, :128].reshape(-1, 2, 64), 4).reshape(-1, 256)
        codes = lower | (_unquads(data[:, 128:192]) << 4)
        scale = data[:, 192:208].contiguous().view(torch.int8)
        return {"codes": codes, "scale": scale, "super_scale": to_halves(data[:, 208:210])}


LAYOUTS_K: dict[str, Layout] = {
    "q2_k": _Q2(),
    "q3_k": _Q3(),
    "q4_k": _Q45(fifth=False),
    "q5_k": _Q45(fifth=True),
    "q6_k": _Q6(),
}
