# SPDX-License-Identifier: Apache-2.0
"""Groups: the view of a tensor in which the last dimension (the last two, for blocks) shares one scale."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from auto_round.schemes import GroupSize

__all__ = ["group_count", "group_shape", "groups_stack", "reshape_pad_tensor_by_group_size", "revert_tensor_by_pad"]

Padding = int | tuple[int, int]


def reshape_pad_tensor_by_group_size(
    data: torch.Tensor, group_size: GroupSize, val: float = 0.0
) -> tuple[torch.Tensor, torch.Size, Padding]:
    """View a tensor in groups, padding each row (or the right and bottom edge, for blocks) where it must.

    | group_size | grouped view |
    |---|---|
    | 0 | [1, all] |
    | -1, or larger than a row | [rows, row] |
    | n | [rows * ceil(row / n), n] |
    | (m, n) | [ceil(rows / m), ceil(row / n), m, n] |

    Args:
        data: any shape; more than two dimensions are flattened to rows along the last one.
        group_size: see `GroupSize`.
        val: value of the padding.

    Returns:
        the grouped view, the original shape and the padding, the two things `revert_tensor_by_pad` needs.

    Raises:
        ValueError: blocks of a tensor that is not two-dimensional.
    """
    shape = data.shape
    if isinstance(group_size, tuple):
        if data.ndim != 2:
            raise ValueError(f"blocks need a two-dimensional tensor, not shape {tuple(shape)}")
        (rows, cols), (m, n) = shape, group_size
        pad_rows, pad_cols = -rows % m, -cols % n
        if pad_rows or pad_cols:
            data = F.pad(data, (0, pad_cols, 0, pad_rows), value=val)
        blocks = data.reshape(data.shape[0] // m, m, data.shape[1] // n, n).permute(0, 2, 1, 3)
        return blocks, shape, (pad_rows, pad_cols)
    if group_size == 0:
        return data.reshape(1, -1), shape, 0
    flat = data.reshape(-1, shape[-1])
    if group_size == -1 or shape[-1] < group_size:
        return flat, shape, 0
    pad = -shape[-1] % group_size
    if pad:
        flat = F.pad(flat, (0, pad), value=val)
    return flat.reshape(-1, group_size), shape, pad


def revert_tensor_by_pad(data: torch.Tensor, orig_shape: tuple[int, ...], pad_len: Padding) -> torch.Tensor:
    """Undo `reshape_pad_tensor_by_group_size`: drop the padding and restore the original shape."""
    if isinstance(pad_len, tuple):
        blocks_down, blocks_across, m, n = data.shape
        flat = data.permute(0, 2, 1, 3).reshape(blocks_down * m, blocks_across * n)
        return flat[: orig_shape[0], : orig_shape[1]]
    if pad_len == 0:
        return data.reshape(orig_shape)
    padded = data.reshape(-1, orig_shape[-1] + pad_len)
    return padded[:, : orig_shape[-1]].reshape(orig_shape)


def group_shape(shape: tuple[int, int], group_size: GroupSize) -> tuple[int, ...]:
    """Shape of the grouped view of a matrix, without making it."""
    rows, cols = shape
    if isinstance(group_size, tuple):
        m, n = group_size
        return (-(-rows // m), -(-cols // n), m, n)
    if group_size == 0:
        return (1, rows * cols)
    if group_size == -1 or cols < group_size:
        return (rows, cols)
    return (rows * -(-cols // group_size), group_size)


def group_count(shape: tuple[int, int], group_size: GroupSize) -> tuple[int, ...]:
    """Shape of one value per group: [groups], or [blocks down, blocks across]."""
    grouped = group_shape(shape, group_size)
    return grouped[: len(grouped) // 2]


def groups_stack(shape: tuple[int, int], group_size: GroupSize) -> bool:
    """Whether the groups of matrices of one shape, put on top of each other, are the groups of each, in that order."""
    return shape[0] % group_size[0] == 0 if isinstance(group_size, tuple) else group_size != 0
