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

from collections.abc import Iterable
from itertools import repeat

import torch

from auto_round_mxfp.blocks import Factor, Settings, known_largest
from auto_round_mxfp.elements import SCALE_BIAS
from auto_round_mxfp.exponents import LIMIT, exponent_of, power_of_two, shared_exponents, wide_exponents
from auto_round_mxfp.rounding import EXPONENT_FIELD, FRACTION_BITS

__all__ = ["largest_magnitudes", "round_in_place", "shared"]

LEAST, MOST = -90, 80
"""Shared exponents with which no number that rounding makes is subnormal or infinite."""

CHUNK = 1 << 19
"""Elements worked on at a time: what is made of them stays in a shared cache, and calls are few."""


def shared(groups: torch.Tensor, max_scale: Factor, settings: Settings) -> tuple[torch.Tensor, torch.Tensor]:
    """The exponent of each block, int32 in [-127, 127], and its largest magnitude before any factor, float32: [groups].

    As `rounded_blocks` finds them.
    """
    largest = known_largest(settings, len(groups))
    largest = largest_magnitudes(groups) if largest is None else largest
    factor = max_scale.detach().float().reshape(-1) if isinstance(max_scale, torch.Tensor) else max_scale
    scaled = largest if isinstance(factor, float) and factor == 1.0 else largest * factor
    if settings.init_scale is None:
        return shared_exponents(scaled, settings.element, settings.rule), largest
    moved = wide_exponents(scaled, settings.element, settings.rule)
    moved -= wide_exponents(largest, settings.element, settings.rule)
    return moved.add_(exponent_of(settings.init_scale.detach()).reshape(-1)).clamp_(-LIMIT, LIMIT), largest


def largest_magnitudes(groups: torch.Tensor) -> torch.Tensor:
    """The largest magnitude of each block, float32 [groups].

    As integers the bits of magnitudes are in the same order, and a CPU finds the largest several times faster.
    """
    largest = torch.empty(len(groups), dtype=torch.int32, device=groups.device)
    step = max(1, CHUNK // max(groups.shape[1], 1)) if groups.device.type == "cpu" else max(len(groups), 1)
    narrow = wide = torch.empty(0)
    for part, found in zip(groups.split(step), largest.split(step), strict=True):
        if len(narrow) != len(part):
            narrow, wide = torch.empty_like(part), torch.empty_like(part, dtype=torch.float32)
        torch.amax(wide.copy_(torch.abs(part, out=narrow)).view(torch.int32), -1, out=found)
    return largest.view(torch.float32)


def round_in_place(
    groups: torch.Tensor, v: torch.Tensor | float, exponents: torch.Tensor, largest: torch.Tensor, settings: Settings
) -> torch.Tensor | None:
    """The rounded blocks, in the dtype of the groups, or None where this way of rounding cannot be had.

    Args:
        groups: [groups, group size], on a CPU.
        v: the learnt offset, float32, shaped like the groups, or one number.
        exponents, largest: of each block, [groups].
    """
    if groups.device.type != "cpu" or not groups.numel() or (not isinstance(v, torch.Tensor) and v):
        return None
    shift = v.detach().reshape(groups.shape) if isinstance(v, torch.Tensor) else None
    if shift is None and not _in_range(exponents):
        exponents = torch.where(largest == 0, 0, exponents)  # whatever its exponent is, a block of zeros stays zeros
    if not _in_range(exponents) or not bool(largest.amax().isfinite()):
        return None
    element = settings.element
    scale = power_of_two(exponents).unsqueeze(-1)
    high = scale * element.max
    low = -high
    # Adding so large a power of two and subtracting it again rounds, see `rounding`; it is 2^p, times this factor.
    factor = 1.5 * 2.0 ** (FRACTION_BITS - element.mantissa_bits)
    least = (exponents + (element.smallest_exponent + SCALE_BIAS) << FRACTION_BITS).unsqueeze(-1)
    out = torch.empty_like(groups)
    step = max(1, CHUNK // groups.shape[1])
    room = torch.empty(2, min(step, len(groups)), groups.shape[1])
    shifts: Iterable[torch.Tensor | None] = repeat(None) if shift is None else shift.split(step)
    of_rows = (tensor.split(step) for tensor in (groups, out, scale, low, high, least))
    for part, done, unit, bottom, top, floor, moved in zip(*of_rows, shifts, strict=False):
        x, power = room[:, : len(part)]
        x.copy_(part)
        if moved is not None:
            x.addcmul_(moved, unit)
        torch.minimum(x, top, out=x)
        torch.maximum(x, bottom, out=x)
        if element.whole:
            power = floor.view(torch.float32)
        else:
            bits = power.view(torch.int32)
            torch.bitwise_and(x.view(torch.int32), EXPONENT_FIELD, out=bits)
            torch.maximum(bits, floor, out=bits)
        x.add_(power, alpha=factor)
        done.copy_(x.sub_(power, alpha=factor))
    return out


def _in_range(exponents: torch.Tensor) -> bool:
    return bool((exponents.amin() >= LEAST) & (exponents.amax() <= MOST))
