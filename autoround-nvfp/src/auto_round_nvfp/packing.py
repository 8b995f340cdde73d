# SPDX-License-Identifier: Apache-2.0
"""Block-scaled floats inside the `auto_round` container.

| tensor | shape | holds |
|---|---|---|
| weight_packed | uint8 [out_features, in_features / 2] | two codes a byte, the first in the low four bits |
| weight_scale | float8_e4m3fn, or uint8 for UE5M3, [out_features, blocks of a row] | block scales |
| weight_global_scale | float32 [1] | what block scales are divided by, where the tensor has a scale |
| input_global_scale | float32 [1] | the same of static activations, where there are any |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch

from auto_round.data_type import Codes
from auto_round.data_type.grouping import group_count
from auto_round.errors import ContractError
from auto_round.export.packing import Packing, TensorLayout

if TYPE_CHECKING:
    from auto_round.schemes import QuantizationScheme

__all__ = ["FloatPacking", "PackedNvFp4", "PackedNvFp4E5M3", "keeps_input_scale", "pack_nibbles", "unpack_nibbles"]

STATIC_ACTIVATIONS = "nv_fp4_with_static_gs"
INPUT_SCALE = "input_global_scale"


def pack_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """Codes 0 to 15, uint8 [rows, n], n even, to uint8 [rows, n / 2], the first of two in the low four bits."""
    return codes[:, 0::2] | codes[:, 1::2] << 4


def unpack_nibbles(packed: torch.Tensor) -> torch.Tensor:
    """Undo `pack_nibbles`."""
    return torch.stack((packed & 0xF, packed >> 4), dim=-1).flatten(1)


class FloatPacking(Packing):
    """What the packed layouts have in common.

    Attributes:
        data_type: registered name it takes.
        group_sizes: block sizes it takes.
        scale_dtype_stored: dtype of stored block scales.
        two_levels: whether there is a scale of the tensor.
    """

    format = "auto_round"
    data_type: ClassVar[str]
    group_sizes: ClassVar[tuple[int, ...]]
    scale_dtype_stored: ClassVar[torch.dtype]
    two_levels: ClassVar[bool]

    def refuses(self, data_type: str, scheme: QuantizationScheme, shape: tuple[int, int]) -> str | None:
        """Why a weight cannot be stored so; see `Packing.refuses`."""
        if data_type != self.data_type:
            return f"{self.name} stores {self.data_type}, not {data_type}"
        if scheme.group_size not in self.group_sizes:
            return f"{self.name} stores blocks of {' or '.join(map(str, self.group_sizes))}, not {scheme.group_size}"
        if shape[1] % scheme.group_size:
            return f"{self.name} needs whole blocks of {scheme.group_size}, not {shape[1]} inputs"
        if keeps_input_scale(scheme) and scheme.act_dynamic is not False:
            return f"{STATIC_ACTIVATIONS} keeps a scale that calibration fixes: set act_dynamic to False"
        return None

    def layout(self, scheme: QuantizationScheme, shape: tuple[int, int]) -> Mapping[str, TensorLayout]:
        """See the table at the top of this module."""
        rows, cols = shape
        described: dict[str, TensorLayout] = {
            "weight_packed": ((rows, cols // 2), torch.uint8),
            "weight_scale": ((rows, group_count(shape, scheme.group_size)[0] // rows), self.scale_dtype_stored),
        }
        if self.two_levels:
            described["weight_global_scale"] = ((1,), torch.float32)
        if keeps_input_scale(scheme):
            described[INPUT_SCALE] = ((1,), torch.float32)
        return described

    def pack(self, codes: Codes) -> Mapping[str, torch.Tensor]:
        """Codes to tensors.

        Raises:
            ContractError: static activations whose scale was never fixed.
        """
        packed = {"weight_packed": self.pack_codes(codes.tensors["codes"]), "weight_scale": codes.tensors["scale"]}
        if self.two_levels:
            packed["weight_global_scale"] = codes.tensors["global_scale"]
        if keeps_input_scale(codes.scheme):
            if INPUT_SCALE not in codes.tensors:
                raise ContractError(f"{self.name}: the scale of the layer's activations was not fixed at calibration.")
            packed[INPUT_SCALE] = codes.tensors[INPUT_SCALE].float().reshape(1)
        return packed

    def pack_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes 0 to 15, uint8 [out, in], to uint8 [out, in / 2]."""
        return pack_nibbles(codes)

    def unpack(
        self,
        tensors: Mapping[str, torch.Tensor],
        data_type: str,
        scheme: QuantizationScheme,
        shape: tuple[int, int],
        dtype: torch.dtype,
    ) -> Codes:
        """Tensors to codes."""
        unpacked = {"codes": unpack_nibbles(tensors["weight_packed"]), "scale": tensors["weight_scale"]}
        if self.two_levels:
            unpacked["global_scale"] = tensors["weight_global_scale"]
        if INPUT_SCALE in tensors:
            unpacked[INPUT_SCALE] = tensors[INPUT_SCALE]
        return Codes(data_type, scheme, shape, dtype, unpacked)


def keeps_input_scale(scheme: QuantizationScheme) -> bool:
    """Whether activations have a scale fixed at calibration."""
    return scheme.quantizes_activations and scheme.act_data_type == STATIC_ACTIVATIONS


class PackedNvFp4(FloatPacking):
    """`nv_fp4`, its tensors named as compressed-tensors names them."""

    name = "auto_round:nv_fp"
    # Existing files call it so, and other families' layouts too.
    aliases: tuple[str, ...] = ("auto_round:llm_compressor",)
    data_type = "nv_fp4"
    group_sizes = (16,)
    scale_dtype_stored = torch.float8_e4m3fn
    two_levels = True


class PackedNvFp4E5M3(FloatPacking):
    """`nvfp4_v2`: the same without a scale of the tensor."""

    name = "auto_round:llm_compressor_nvfp4_e5m3"
    data_type = "nvfp4_v2"
    group_sizes = (16, 32)
    scale_dtype_stored = torch.uint8
    two_levels = False
