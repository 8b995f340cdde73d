# SPDX-License-Identifier: Apache-2.0
"""Groups laid out so that scales broadcast over them, without copying a tensor where its shape divides."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from auto_round.data_type.grouping import group_count, group_shape, revert_tensor_by_pad
from auto_round.data_type.magnitudes import largest_magnitudes

if TYPE_CHECKING:
    from auto_round.schemes import GroupSize

__all__ = ["CHUNK", "Tiles", "part"]

CHUNK = 1 << 18
"""Elements worked on at a time on a CPU, so that the temporaries of one chunk stay in its caches."""


class Tiles:
    """How tensors of one shape fall into groups.

    | group_size | tiles | scales |
    |---|---|---|
    | 0 | [rows, row] | [1, 1] |
    | -1, or larger than a row | [rows, row] | [rows, 1] |
    | n | [rows * ceil(row / n), n] | [rows * ceil(row / n), 1] |
    | (m, n) | [blocks down, m, blocks across, n] | [blocks down, 1, blocks across, 1] |

    Values that are learnt come in the order of `reshape_pad_tensor_by_group_size`, which differs for blocks alone.

    Args:
        shape: of the tensor; more than two dimensions are rows along the last one.
        group_size: see `GroupSize`.

    Attributes:
        counts: shape of one value per group: [groups], or [blocks down, blocks across].
        over: the dimensions of tiles that are one group.
    """

    def __init__(self, shape: torch.Size | tuple[int, ...], group_size: GroupSize) -> None:
        self._shape = torch.Size(shape)
        self._width = self._shape[-1] if self._shape else 1
        rows = self._shape.numel() // max(self._width, 1)
        self._flat = (rows, self._width)
        self._group_size = group_size
        self._grouped = group_shape(self._flat, group_size)
        self.counts = group_count(self._flat, group_size)
        if isinstance(group_size, tuple):
            if len(self._shape) != 2:
                raise ValueError(f"blocks need a two-dimensional tensor, not shape {tuple(shape)}")
            m, n = group_size
            self._tile_shape: tuple[int, ...] = (self.counts[0], m, self.counts[1], n)
            self._scale_shape: tuple[int, ...] = (self.counts[0], 1, self.counts[1], 1)
            self._pad = (-self._width % n, -rows % m)
            self.over: tuple[int, ...] = (1, 3)
        elif group_size == 0:
            self._tile_shape, self._scale_shape, self._pad, self.over = self._flat, (1, 1), (0, 0), (0, 1)
        else:
            self._tile_shape, self._scale_shape, self.over = self._grouped, (self.counts[0], 1), (1,)
            padded = 0 < group_size <= self._width
            self._pad = (-self._width % group_size if padded else 0, 0)

    def view(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor as tiles, padded with zeros; its dtype stays, but for float64, which becomes float32."""
        flat = tensor.detach().reshape(self._flat)
        if flat.dtype == torch.float64:
            flat = flat.float()
        if any(self._pad):
            # Eight-bit floats cannot be padded themselves.
            wide = flat.view(torch.uint8) if flat.dtype.itemsize == 1 else flat
            flat = F.pad(wide, (0, self._pad[0], 0, self._pad[1])).view(flat.dtype)
        return flat.reshape(self._tile_shape)

    def empty(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Room for tiles."""
        return torch.empty(self._tile_shape, dtype=dtype, device=device)

    def crop(self, tiles: torch.Tensor) -> torch.Tensor:
        """Undo `view`: the original shape without padding, contiguous; the dtype stays."""
        if len(self._tile_shape) == 4:
            rows, cols = self._flat
            flat = tiles.reshape(rows + self._pad[1], cols + self._pad[0])
            return flat[:rows, :cols].contiguous()
        return revert_tensor_by_pad(tiles, self._shape, self._pad[0]).contiguous()

    def learnt(self, grouped: torch.Tensor) -> torch.Tensor:
        """A value per element, in grouped order, as tiles; a view of what it is given."""
        if len(self._tile_shape) == 4:
            return grouped.reshape(self._grouped).permute(0, 2, 1, 3)
        return grouped.reshape(self._tile_shape)

    def room_for_learnt(self, device: torch.device) -> torch.Tensor:
        """Room for a float32 value per element in grouped order, which `learnt` shows as tiles."""
        return torch.empty(self._grouped, dtype=torch.float32, device=device)

    def spread(self, scale: torch.Tensor) -> torch.Tensor:
        """A value per group, of any shape, or a single one, shaped to broadcast over tiles."""
        if scale.numel() == 1:
            return scale.reshape([1] * len(self._tile_shape))
        return scale.reshape(self._scale_shape)

    def largest(self, tiles: torch.Tensor) -> torch.Tensor:
        """The largest magnitude of each group, float32 in the shape of `counts`."""
        joined = largest_magnitudes(tiles, self.over, CHUNK)
        return (joined.amax(0) if len(joined) != self._scale_shape[0] else joined).reshape(self.counts)

    def totals(self, tiles: torch.Tensor) -> torch.Tensor:
        """The sum of each group of some tiles, in a shape that broadcasts over them."""
        return tiles.sum(self.over, keepdim=True)

    def gather(self, parts: list[torch.Tensor]) -> torch.Tensor:
        """What `totals` gave for chunks, put together: one value per group, in the shape of `counts`."""
        joined = torch.cat(parts)
        return (joined.sum(0) if len(joined) != self._scale_shape[0] else joined).reshape(self.counts)


def part(scale: torch.Tensor, rows: slice) -> torch.Tensor:
    """The scales of a slice of tiles; one that serves all of them serves each."""
    return scale if scale.shape[0] == 1 else scale[rows]
