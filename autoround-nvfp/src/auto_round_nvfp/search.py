# SPDX-License-Identifier: Apache-2.0
"""Better block scales than a block's largest magnitude gives, found one block at a time under importance weights.

A stored scale has few values, so the search goes over them: every code of the scale format from a little above plain
rounding's to well below it. Each block takes the code with the least

    sum(h (W - q d)^2),    d = s / G,  q = E2M1(clamp(W / d, -6, 6)),

h the importance of an input channel and G the scale of the tensor, shared by all layers a runtime fuses. Larger scales
than plain rounding's put the largest weight on 4 or 3, where the grid around it is finer; smaller ones cut it off.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from auto_round.data_type.grouping import reshape_pad_tensor_by_group_size
from auto_round_nvfp.blocks import BlockScale, Settings, global_scale_of, largest_magnitudes
from auto_round_nvfp.minifloat import LARGEST_E2M1, round_e2m1_

__all__ = ["search_scales"]

ABOVE, BELOW = 8, 12
"""Codes tried on either side of plain rounding's; eight codes are a factor of two."""

MARGIN = 1e-6
"""The least relative gain over plain rounding that counts, above what float32 sums could feign."""

CHUNK_CPU, CHUNK_ELSEWHERE = 1 << 17, 1 << 24
"""Weights searched at a time: on a CPU few enough to stay in its caches over all candidates."""

TINY = 1e-30


def search_scales(
    weight: torch.Tensor, imatrix: torch.Tensor | None, block_scale: BlockScale, settings: Settings
) -> torch.Tensor:
    """The best block scales of a weight [out_features, in_features], as stored, float32 [blocks, 1].

    Args:
        imatrix: importance of each input channel, float32 [in_features], or None for equal importance.
    """
    weight = weight.detach()
    tensor = settings.global_scale
    if block_scale.two_levels and tensor is None:
        tensor = global_scale_of(weight.float().abs().amax(), block_scale.format)
    found = []
    for rows in _row_chunks(weight):
        groups = reshape_pad_tensor_by_group_size(weight[rows].float(), settings.group_size)[0]
        root = None if imatrix is None else _root_importance(imatrix, weight[rows], settings)
        found.append(_best(groups, root, block_scale, None if tensor is None else tensor.float().reshape(()), settings))
    return torch.cat(found)


def _best(
    groups: torch.Tensor,
    root: torch.Tensor | None,
    block_scale: BlockScale,
    tensor: torch.Tensor | None,
    settings: Settings,
) -> torch.Tensor:
    scale_format = block_scale.format
    exact = largest_magnitudes(groups, Settings(settings.group_size)) / LARGEST_E2M1
    plain = scale_format.codes((exact if tensor is None else tensor * exact).unsqueeze(-1))
    found = scale_format.values(plain)
    least = _error(groups, root, block_scale, found, tensor) * (1.0 - MARGIN)
    for change in (c for c in range(-BELOW, ABOVE + 1) if c):
        tried = scale_format.values(plain + change)
        error = _error(groups, root, block_scale, tried, tensor)
        found = torch.where(error < least, tried, found)
        least = torch.minimum(error, least)
    return found


def _error(
    groups: torch.Tensor,
    root: torch.Tensor | None,
    block_scale: BlockScale,
    block: torch.Tensor,
    tensor: torch.Tensor | None,
) -> torch.Tensor:
    """The weighted squared error of each block, float32 [blocks, 1]."""
    scales = block_scale.steps(block, tensor)
    elements = torch.div(groups, scales.divisor).clamp_(-LARGEST_E2M1, LARGEST_E2M1)
    rest = torch.addcmul(groups, round_e2m1_(elements), scales.step, value=-1.0)
    if root is not None:
        rest.mul_(root)
    return torch.linalg.vector_norm(rest, dim=-1, keepdim=True).square_()


def _root_importance(imatrix: torch.Tensor, weight: torch.Tensor, settings: Settings) -> torch.Tensor:
    """The square roots of the importance, largest 1 in each block, float32 [blocks, block size]."""
    importance = imatrix.detach().float().clamp(min=0.0).expand(weight.shape)
    root = reshape_pad_tensor_by_group_size(importance, settings.group_size)[0].sqrt()
    most = root.amax(-1, keepdim=True)
    # Only ratios within a block matter; a block that no token of the calibration reached counts evenly.
    return torch.where(most > 0, root / most.clamp(min=TINY), 1.0)


def _row_chunks(weight: torch.Tensor) -> Iterator[slice]:
    rows, cols = weight.shape
    size = CHUNK_CPU if weight.device.type == "cpu" else CHUNK_ELSEWHERE
    step = max(1, size // max(cols, 1))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
