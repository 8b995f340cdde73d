# SPDX-License-Identifier: Apache-2.0
"""The layout of AWQ's files (version `gemm`): four bits, with zero points.

| tensor | shape | holds |
|---|---|---|
| qweight | int32 [in_features, out_features / 8] | codes, eight output channels in a word |
| qzeros | int32 [groups of a row, out_features / 8] | zero points as they are, packed like codes |
| scales | float16 [groups of a row, out_features] | scales |

The eight lie in a word in an order that suits the GPU kernel of Lin et al. 2023, arXiv:2306.00978. Symmetric weights
have 8 for every zero point; format `auto_awq` takes them, the packing inside `auto_round` leaves them to GPTQ's layout,
which loads in more places.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from auto_round_int.packing_gptq import IntegerPacking, codes_of, groups_across, stored_parts, turned_bit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from auto_round.data_type import Codes
    from auto_round.export.packing import TensorLayout
    from auto_round.schemes import QuantizationScheme

__all__ = ["AutoAwq"]

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight output channels lies where in a word, from the lowest four bits up."""


class AutoAwq(IntegerPacking):
    """Asymmetric four-bit weights in the layout of AWQ's files."""

    name = "auto_round:auto_awq"
    aliases = ("auto_round:awq",)
    data_types = ("int_asym",)
    bits = (4,)

    def refuses(self, data_type: str, scheme: QuantizationScheme, shape: tuple[int, int]) -> str | None:
        """Why a weight cannot be stored so; readers of this layout know whole groups only."""
        reason = super().refuses(data_type, scheme, shape)
        size = scheme.group_size
        if reason is None and isinstance(size, int) and 0 < size < shape[1] and shape[1] % size:
            return f"{self.name} needs rows of whole groups: {shape[1]} inputs are no multiple of group_size {size}"
        return reason

    def layout(self, scheme: QuantizationScheme, shape: tuple[int, int]) -> Mapping[str, TensorLayout]:
        """See the table at the top of this module."""
        (rows, cols), across = shape, groups_across(scheme, shape)
        return {
            "qweight": ((cols, rows // 8), torch.int32),
            "qzeros": ((across, rows // 8), torch.int32),
            "scales": ((across, rows), torch.float16),
        }

    def pack(self, codes: Codes) -> Mapping[str, torch.Tensor]:
        """Codes to tensors."""
        stored, zero_points, scales = stored_parts(codes, self.name)
        return {
            "qweight": _pack_columns(stored, turned_bit(codes)),
            "qzeros": _pack_columns(zero_points),
            "scales": scales.t().contiguous(),
        }

    def unpack(
        self,
        tensors: Mapping[str, torch.Tensor],
        data_type: str,
        scheme: QuantizationScheme,
        shape: tuple[int, int],
        dtype: torch.dtype,
    ) -> Codes:
        """Tensors to codes."""
        unsigned, zero_points = _unpack_columns(tensors["qweight"]), _unpack_columns(tensors["qzeros"])
        return codes_of(unsigned, zero_points, tensors["scales"].t(), data_type, scheme, dtype, self.name)


def _pack_columns(values: torch.Tensor, turned: int = 0) -> torch.Tensor:
    """uint8 [out, n], a bit of each turned and no more than four of them kept, to int32 [n, out / 8]."""
    eights = values.reshape(-1, 8, values.shape[1])
    words = torch.zeros(eights.shape[0], eights.shape[2], dtype=torch.int32, device=values.device)
    for place, channel in enumerate(ORDER):
        words |= (eights[:, channel] ^ turned).bitwise_and_(15).int().bitwise_left_shift_(4 * place)
    return words.t().contiguous()


def _unpack_columns(words: torch.Tensor) -> torch.Tensor:
    """Undo `_pack_columns`."""
    rows = words.t().contiguous()
    eights = torch.empty(rows.shape[0], 8, rows.shape[1], dtype=torch.uint8, device=words.device)
    for place, channel in enumerate(ORDER):
        eights[:, channel] = (rows >> (4 * place)).bitwise_and_(15)
    return eights.reshape(-1, rows.shape[1])
