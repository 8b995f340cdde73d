# SPDX-License-Identifier: Apache-2.0
"""How the family lies in the `auto_round` container.

| packing | tensor | shape | holds |
|---|---|---|---|
| auto_round:fp8_static | weight | e4m3 [out_features, in_features] | codes |
| | weight_scale | the model's dtype, [out_features] | scale of each row |
| | input_scale | the model's dtype, [1] | scale of all inputs |
| auto_round:fp8 | weight | e4m3 [out_features, in_features] | codes |
| | weight_scale_inv, of blocks | float32 [blocks down, blocks across] | what a code is multiplied by |
| | weight_scale, otherwise | float32 [out_features, groups of a row], [1] of a tensor | the same |
| | input_scale, of static activations | float32 [1] | scale of all inputs |
| auto_round:fp8_to_int | weight_packed | uint8 [out_features, in_features / 2] | two codes, the first in the low half |
| | weight_scale | bfloat16 [out_features, groups of a row] | scale of each group |
| | weight_fp8_scale | float32 [1] | scale of the tensor |
| | input_scale, of static activations | float32 [1] | scale of all inputs |

`weight_scale_inv` is so called because it is the inverse of what the weight was multiplied by.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from auto_round.data_type import Codes
from auto_round.errors import ContractError
from auto_round.export.packing import Packing, TensorLayout
from auto_round_fp8.float8 import scale_shape

if TYPE_CHECKING:
    from auto_round.schemes import QuantizationScheme

__all__ = [
    "E4M3_NAMES",
    "Hybrid",
    "Plain",
    "Static",
    "exactly",
    "holds",
    "is_static",
    "packed_input_scale",
    "unpacked_input_scale",
]

E4M3_NAMES = ("fp8", "fp8_sym", "fp8_e4m3", "block_fp8", "block_fp8_sym", "block_fp8_e4m3", "fp8_dynamic")
"""Registered names whose codes are e4m3 with a scale."""

HYBRID_NAMES = ("fp8_to_int_sym", "w4fp8")

ACTIVATION_NAMES = ("fp", *E4M3_NAMES)
"""What schemes may call activations of e4m3."""

INPUT_SCALE = "input_init_scale"
"""What codes call the scale that static activations were frozen to."""


def is_static(scheme: QuantizationScheme) -> bool:
    """Whether activations have a scale that is stored."""
    return scheme.quantizes_activations and scheme.act_dynamic is False


def packed_input_scale(codes: Codes, name: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The stored scale of static activations, [1]; nothing where activations are not static.

    Raises:
        ContractError: the codes lack it, or the dtype does not hold it.
    """
    if not is_static(codes.scheme):
        return {}
    if INPUT_SCALE not in codes.tensors:
        raise ContractError(f"{name}: activations are static, but their scale was not observed: calibrate with data.")
    return {"input_scale": exactly(codes.tensors[INPUT_SCALE].reshape(1), dtype, name)}


def unpacked_input_scale(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Undo `packed_input_scale`."""
    return {INPUT_SCALE: tensors["input_scale"].float().reshape(1)} if "input_scale" in tensors else {}


def exactly(scale: torch.Tensor, dtype: torch.dtype, name: str) -> torch.Tensor:
    """Scales in another dtype.

    Raises:
        ContractError: they would have to be rounded.
    """
    cast = scale.to(dtype)
    if not torch.equal(cast.float(), scale.float()):
        raise ContractError(f"{name} stores scales as {dtype} and got {scale.dtype} ones that it would have to round.")
    return cast


def holds(data_type: str, scheme: QuantizationScheme, names: tuple[str, ...], packing: str) -> str | None:
    """Why a packing for some data types does not take another, or other activations than e4m3; None if it does."""
    if data_type not in names:
        return f"{packing} stores {', '.join(names)}, not {data_type}"
    if scheme.quantizes_activations:
        activations = str(scheme.act_data_type).rpartition(":")[2].lower()
        if scheme.act_bits != 8 or activations not in ACTIVATION_NAMES:
            told = f"{activations} of {scheme.act_bits} bits"
            return f"{packing} goes with activations of e4m3 (fp, 8 bits) or at full precision, not {told}"
    return None


class Static(Packing):
    """Rows of e4m3 and activations with one scale that was observed."""

    name = "auto_round:fp8_static"
    format = "auto_round"

    def refuses(self, data_type: str, scheme: QuantizationScheme, shape: tuple[int, int]) -> str | None:
        """Why a weight cannot be stored so; see `Packing.refuses`."""
        if scheme.group_size != -1 or not is_static(scheme) or scheme.act_group_size != 0:
            return f"{self.name} stores rows with static activations, one scale for all inputs"
        return holds(data_type, scheme, E4M3_NAMES, self.name)

    def scale_dtype(self, weight_dtype: torch.dtype) -> torch.dtype:
        """Scales have the dtype of the model."""
        return weight_dtype

    def layout(self, scheme: QuantizationScheme, shape: tuple[int, int]) -> Mapping[str, TensorLayout]:
        """See the table at the top of this module; scales load into float32, which holds those of every dtype."""
        return {
            "weight": (shape, torch.float8_e4m3fn),
            "weight_scale": ((shape[0],), torch.float32),
            "input_scale": ((1,), torch.float32),
        }

    def pack(self, codes: Codes) -> Mapping[str, torch.Tensor]:
        """Codes to tensors."""
        return {
            "weight": codes.tensors["codes"],
            "weight_scale": exactly(codes.tensors["scale"].reshape(-1), codes.dtype, self.name),
            **packed_input_scale(codes, self.name, codes.dtype),
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
        scale = tensors["weight_scale"].reshape(-1, 1)
        found = {"codes": tensors["weight"], "scale": scale, **unpacked_input_scale(tensors)}
        return Codes(data_type, scheme, shape, dtype, found)


class Plain(Packing):
    """e4m3 with float32 scales of any group."""

    name = "auto_round:fp8"
    format = "auto_round"
    aliases = ("auto_round:fp8_block",)

    def refuses(self, data_type: str, scheme: QuantizationScheme, shape: tuple[int, int]) -> str | None:
        """Why a weight cannot be stored so; see `Packing.refuses`."""
        return holds(data_type, scheme, E4M3_NAMES, self.name)

    def scale_dtype(self, weight_dtype: torch.dtype) -> torch.dtype:
        """Scales are float32."""
        return torch.float32

    def layout(self, scheme: QuantizationScheme, shape: tuple[int, int]) -> Mapping[str, TensorLayout]:
        """See the table at the top of this module."""
        name, scales = _plain_scale(scheme, shape)
        layout = {"weight": (shape, torch.float8_e4m3fn), name: (scales, torch.float32)}
        return layout | ({"input_scale": ((1,), torch.float32)} if is_static(scheme) else {})

    def pack(self, codes: Codes) -> Mapping[str, torch.Tensor]:
        """Codes to tensors."""
        name, scales = _plain_scale(codes.scheme, codes.shape)
        return {
            "weight": codes.tensors["codes"],
            name: exactly(codes.tensors["scale"], torch.float32, self.name).reshape(scales),
            **packed_input_scale(codes, self.name, torch.float32),
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
        scale = tensors[_plain_scale(scheme, shape)[0]].reshape(scale_shape(shape, scheme.group_size))
        found = {"codes": tensors["weight"], "scale": scale, **unpacked_input_scale(tensors)}
        return Codes(data_type, scheme, shape, dtype, found)


def _plain_scale(scheme: QuantizationScheme, shape: tuple[int, int]) -> tuple[str, tuple[int, ...]]:
    if isinstance(scheme.group_size, tuple):
        return "weight_scale_inv", scale_shape(shape, scheme.group_size)
    return "weight_scale", (1,) if scheme.group_size == 0 else scale_shape(shape, scheme.group_size)


class Hybrid(Packing):
    """Four-bit codes of the integers on top of e4m3, two in a byte."""

    name = "auto_round:fp8_to_int"
    format = "auto_round"

    def refuses(self, data_type: str, scheme: QuantizationScheme, shape: tuple[int, int]) -> str | None:
        """Why a weight cannot be stored so; see `Packing.refuses`."""
        if scheme.bits != 4 or shape[1] % 2:
            return (
                f"{self.name} stores 4 bits and an even number of inputs, not {scheme.bits} bits of {shape[1]} inputs"
            )
        return holds(data_type, scheme, HYBRID_NAMES, self.name)

    def layout(self, scheme: QuantizationScheme, shape: tuple[int, int]) -> Mapping[str, TensorLayout]:
        """See the table at the top of this module."""
        layout = {
            "weight_packed": ((shape[0], shape[1] // 2), torch.uint8),
            "weight_scale": (scale_shape(shape, scheme.group_size), torch.bfloat16),
            "weight_fp8_scale": ((1,), torch.float32),
        }
        return layout | ({"input_scale": ((1,), torch.float32)} if is_static(scheme) else {})

    def pack(self, codes: Codes) -> Mapping[str, torch.Tensor]:
        """Codes to tensors."""
        halves = codes.tensors["codes"].view(torch.uint8) & 0xF
        return {
            "weight_packed": halves[:, 0::2] | (halves[:, 1::2] << 4),
            "weight_scale": codes.tensors["scale"],
            "weight_fp8_scale": codes.tensors["fp8_scale"],
            **packed_input_scale(codes, self.name, torch.float32),
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
        packed = tensors["weight_packed"]
        halves = torch.stack((packed & 0xF, packed >> 4), dim=-1).reshape(shape)
        found = {
            "codes": (halves ^ 8).sub_(8).view(torch.int8),  # flips the sign bit of four, then extends it
            "scale": tensors["weight_scale"],
            "fp8_scale": tensors["weight_fp8_scale"],
            **unpacked_input_scale(tensors),
        }
        return Codes(data_type, scheme, shape, dtype, found)
