# SPDX-License-Identifier: Apache-2.0
"""The layout of GPTQ's files inside the `auto_round` container: `qweight`, `qzeros`, `scales`.

| tensor | shape | holds |
|---|---|---|
| qweight | int32 [in_features * b / 32, out_features] | codes from 0 to 2^b - 1, a stream of bits down each column |
| qzeros | int32 [groups of a row, out_features * b / 32] | zero points, a stream of bits along each row |
| scales | float16 [groups of a row, out_features] | scales; negative ones as they are |

A weight is `scale * (code - zero point)`; symmetric codes are stored plus 2^(b-1), which is also their zero point.
Input i belongs to group i // group_size, and the last group of a row may be shorter; some readers want that written
out, in a tensor `g_idx`, int32 [in_features]. Version 1 of the format stores zero points minus one (Frantar et al.
2022, arXiv:2210.17323, and the files its authors' code wrote), version 2 as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from auto_round.data_type import Codes
from auto_round.data_type.grouping import group_count
from auto_round.errors import ContractError
from auto_round.export.packing import Packing, TensorLayout
from auto_round_int.bits import pack_rows, unpack_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from auto_round.schemes import QuantizationScheme

__all__ = [
    "INTEGERS",
    "SYMMETRIC",
    "AutoGptq",
    "Dense",
    "GptqModel",
    "IntegerPacking",
    "ZeroPointsAsTheyAre",
    "codes_of",
    "group_indices",
    "groups_across",
    "stored_parts",
    "turned_bit",
]

SYMMETRIC = ("int_sym", "int_sym_gptq")
"""Registered names of the data types with signed codes and no zero point."""

INTEGERS = (*SYMMETRIC, "int_asym")
"""Those of all data types of the family."""

MULTIPLE = 32
"""Both sides of a weight have to be a multiple of this: 32 codes fill whole words at any number of bits."""


class IntegerPacking(Packing):
    """What the packed integer layouts have in common.

    Attributes:
        data_types: registered names it takes.
        bits: numbers of bits it takes.
    """

    format = "auto_round"
    data_types: ClassVar[tuple[str, ...]] = INTEGERS
    bits: ClassVar[tuple[int, ...]]

    def refuses(self, data_type: str, scheme: QuantizationScheme, shape: tuple[int, int]) -> str | None:
        """Why a weight cannot be stored so; see `Packing.refuses`."""
        if data_type not in self.data_types:
            return f"{self.name} stores {' and '.join(self.data_types)}, not {data_type}"
        if scheme.bits not in self.bits:
            return f"{self.name} stores {_listed(self.bits)} bits, not {scheme.bits}"
        if isinstance(scheme.group_size, tuple) or scheme.group_size == 0:
            return f"{self.name} stores groups along a row (group_size -1 for whole rows), not {scheme.group_size}"
        if shape[0] % MULTIPLE or shape[1] % MULTIPLE:
            return f"{self.name} needs both sides of a weight to be multiples of {MULTIPLE}, not {shape}"
        if scheme.quantizes_activations and scheme.act_dynamic is False:
            return f"{self.name} has no place for the scale of static activations"
        return None

    def scale_dtype(self, weight_dtype: torch.dtype) -> torch.dtype:
        """Scales are float16 whatever the dtype of the weight."""
        return torch.float16


class _GptqLayout(IntegerPacking):
    minus: ClassVar[int] = 0
    """What is taken off a zero point before it is stored."""

    def layout(self, scheme: QuantizationScheme, shape: tuple[int, int]) -> Mapping[str, TensorLayout]:
        """See the table at the top of this module."""
        (rows, cols), across = shape, groups_across(scheme, shape)
        return {
            "qweight": ((cols * scheme.bits // 32, rows), torch.int32),
            "qzeros": ((across, rows * scheme.bits // 32), torch.int32),
            "scales": ((across, rows), torch.float16),
        }

    def pack(self, codes: Codes) -> Mapping[str, torch.Tensor]:
        """Codes to tensors."""
        bits = codes.scheme.bits
        stored, zero_points, scales = stored_parts(codes, self.name)
        return {
            "qweight": pack_rows(stored, bits, turned_bit(codes)).t().contiguous(),
            "qzeros": pack_rows(zero_points.t() - self.minus, bits),
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
        bits, (rows, cols) = scheme.bits, shape
        unsigned = unpack_rows(tensors["qweight"].t(), bits, cols)
        zero_points = (unpack_rows(tensors["qzeros"], bits, rows).t() + self.minus) & ((1 << bits) - 1)
        return codes_of(unsigned, zero_points, tensors["scales"].t(), data_type, scheme, dtype, self.name)


class AutoGptq(_GptqLayout):
    """Symmetric weights in the layout of GPTQ's files, version 1: zero points minus one."""

    name = "auto_round:auto_gptq"
    aliases = ("auto_round:gptq",)
    data_types = SYMMETRIC
    bits = (2, 3, 4, 8)
    minus = 1


class ZeroPointsAsTheyAre(_GptqLayout):
    """Asymmetric weights in the layout of GPTQ's files, the zero points as they are."""

    name = "auto_round"
    data_types = ("int_asym",)
    bits = (2, 3, 4, 8)


class GptqModel(_GptqLayout):
    """Version 2 of GPTQ's files, symmetric or not, with the group of every input written out."""

    name = "auto_round:gptqmodel"
    bits = (2, 3, 4, 8)

    def layout(self, scheme: QuantizationScheme, shape: tuple[int, int]) -> Mapping[str, TensorLayout]:
        """That of the other layouts and `g_idx`."""
        return {**super().layout(scheme, shape), "g_idx": ((shape[1],), torch.int32)}

    def pack(self, codes: Codes) -> Mapping[str, torch.Tensor]:
        """Codes to tensors."""
        return {**super().pack(codes), "g_idx": group_indices(codes.scheme, codes.shape)}


class Dense(_GptqLayout):
    """The same stream of bits for the widths that no other runtime's format has."""

    name = "auto_round:int_dense"
    bits = (5, 6, 7)


def groups_across(scheme: QuantizationScheme, shape: tuple[int, int]) -> int:
    """Groups of one row, a shorter last one included."""
    return group_count(shape, scheme.group_size)[0] // shape[0]


def group_indices(scheme: QuantizationScheme, shape: tuple[int, int]) -> torch.Tensor:
    """The group of a row that each input belongs to, int32 [in_features]."""
    assert isinstance(scheme.group_size, int)
    size = scheme.group_size if scheme.group_size > 0 else shape[1]
    return torch.arange(shape[1], dtype=torch.int32) // size


def stored_parts(codes: Codes, name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes as bytes with their zero points, uint8 [out, in] and [out, groups], and float16 scales.

    Where codes are signed the bytes are, too, and zero points are those of codes with `turned_bit` turned.

    Raises:
        ContractError: scales that float16 does not hold.
    """
    scale = codes.tensors["scale"]
    scales = scale.to(torch.float16)
    if scale.dtype != torch.float16 and not torch.equal(scales.to(scale.dtype), scale):
        raise ContractError(f"{name} stores scales as float16 and got {scale.dtype} ones that it would have to round.")
    zero_points = codes.tensors.get("zero_point")
    if zero_points is None:
        zero_points = torch.full_like(scales, 1 << (codes.scheme.bits - 1), dtype=torch.uint8)
    return codes.tensors["codes"].view(torch.uint8), zero_points, scales


def turned_bit(codes: Codes) -> int:
    """The bit that, turned, makes codes from zero on of those that are stored; 0 where they are that already."""
    return 0 if "zero_point" in codes.tensors else 1 << (codes.scheme.bits - 1)


def codes_of(
    unsigned: torch.Tensor,
    zero_points: torch.Tensor,
    scales: torch.Tensor,
    data_type: str,
    scheme: QuantizationScheme,
    dtype: torch.dtype,
    name: str,
) -> Codes:
    """Codes from 0 to 2^b - 1, zero points and scales to what `stored_parts` takes.

    Raises:
        ContractError: a symmetric weight with zero points that are not in the middle.
    """
    shape = (unsigned.shape[0], unsigned.shape[1])
    tensors = {"codes": unsigned, "scale": scales.contiguous()}
    middle = 1 << (scheme.bits - 1)
    if not scheme.sym:
        tensors["zero_point"] = zero_points.contiguous()
    elif bool((zero_points != middle).any()):
        raise ContractError(f"{name}: a symmetric weight has zero points other than {middle}; is it asymmetric?")
    else:
        tensors["codes"] = (unsigned - middle).view(torch.int8)
    return Codes(data_type, scheme, shape, dtype, tensors)


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers[:-1])) + f" and {numbers[-1]}" if len(numbers) > 1 else str(numbers[0])
