# SPDX-License-Identifier: Apache-2.0
"""Rounding in units of the tensor itself, in half the passes over memory; the same bits as `rounded_blocks`.

With S the shared exponent of a block, everything there times 2^S, which changes no bit of a float32 that is neither
too small nor too large:

    y = round(clamp(w + 2^S v, -2^S max, 2^S max)),    in steps of 2^(p - m), p = max(floor(log2 |y|), S + emin)

where m is the number of mantissa bits and emin the smallest exponent of the element. So a weight is neither scaled nor
scaled back, and each pass works on numbers that a CPU compares and adds fastest. Blocks with exponents so far from
zero that a float32 could run out are left to `rounded_blocks`.
"""

from __future__ import annotations

import torch

from auto_round_mxfp.blocks import Factor, Settings, exponents_for, known_largest
from auto_round_mxfp.elements import SCALE_BIAS
from auto_round_mxfp.exponents import exponent_of, power_of_two
from auto_round_mxfp.rounding import EXPONENT_FIELD, FRACTION_BITS

__all__ = ["round_in_place"]

MAGNITUDE = 0x7FFFFFFF
"""All bits of a float32 but its sign."""

LEAST, MOST = -90, 80
"""Shared exponents with which no number that rounding makes is subnormal or infinite."""

CHUNK = 1 << 19
"""Elements worked on at a time: what is made of them stays in a shared cache, and calls are few."""


def round_in_place(
    groups: torch.Tensor, v: torch.Tensor | float, max_scale: Factor, settings: Settings
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """Round blocks on a CPU, or None where this way of rounding cannot be had.

    Args:
        groups: [groups, group size].
        v: the learnt offset, float32, shaped like the groups, or one number.
        max_scale: the learnt factor.

    Returns:
        the rounded blocks, in the dtype of the groups; their exponents, int32 in [-127, 127]; and their largest
        magnitudes before any factor, float32: [groups].
    """
    if not groups.numel() or (not isinstance(v, torch.Tensor) and v):
        return None
    element, count = settings.element, max(1, CHUNK // groups.shape[1])
    shift = v.detach().reshape(groups.shape) if isinstance(v, torch.Tensor) else None
    learnt = max_scale.detach().float().reshape(-1) if isinstance(max_scale, torch.Tensor) else max_scale
    known = known_largest(settings, len(groups))
    start = None if settings.init_scale is None else exponent_of(settings.init_scale.detach()).reshape(-1)
    out = torch.empty_like(groups)
    exponents = torch.empty(len(groups), dtype=torch.int32)
    largest = torch.empty(len(groups)) if known is None else known
    # Adding so large a power of two and subtracting it again rounds, see `rounding`; it is 2^p, times this factor.
    factor = 1.5 * 2.0 ** (FRACTION_BITS - element.mantissa_bits)
    room = torch.empty(2, min(count, len(groups)), groups.shape[1])
    # What is made for a chunk is small: memory fresh from the system costs more than what is done in it.
    for first in range(0, len(groups), count):
        rows = slice(first, min(first + count, len(groups)))
        x, power = room[:, : rows.stop - first]
        bits = power.view(torch.int32)
        x.copy_(groups[rows])
        if known is None:
            # As integers magnitudes are in the same order, and a CPU finds the largest several times faster.
            torch.bitwise_and(x.view(torch.int32), MAGNITUDE, out=bits)
            torch.amax(bits, -1, out=largest[rows].view(torch.int32))
        most = largest[rows]
        by = learnt[rows] if isinstance(learnt, torch.Tensor) and learnt.numel() > 1 else learnt
        shared = exponents[rows]
        shared.copy_(exponents_for(most, by, None if start is None else start[rows], settings))
        if shift is None and not _in_range(shared):
            shared = torch.where(most == 0, 0, shared)  # whatever its exponent is, a block of zeros stays zeros
        if not _in_range(shared) or not bool(most.amax().isfinite()):
            return None
        scale = power_of_two(shared).unsqueeze(-1)
        high, least = scale * element.max, (shared + (element.smallest_exponent + SCALE_BIAS) << FRACTION_BITS)
        if shift is not None:
            x.addcmul_(shift[rows], scale)
        torch.minimum(x, high, out=x)
        torch.maximum(x, high.neg_(), out=x)
        if element.whole:
            power = least.unsqueeze(-1).view(torch.float32)
        else:
            torch.bitwise_and(x.view(torch.int32), EXPONENT_FIELD, out=bits)
            torch.maximum(bits, least.unsqueeze(-1), out=bits)
        x.add_(power, alpha=factor)
        out[rows] = x.sub_(power, alpha=factor)
    return out, exponents, largest


def _in_range(exponents: torch.Tensor) -> bool:
    return bool((exponents.amin() >= LEAST) & (exponents.amax() <= MOST))
