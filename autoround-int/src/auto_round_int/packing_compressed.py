# SPDX-License-Identifier: Apache-2.0
"""Integers as compressed-tensors keeps them, weights packed into words or one to a byte.

| format | tensor | shape | holds |
|---|---|---|---|
| pack-quantized | weight_packed | int32 [out, ceil(in * b / 32)] | codes from 0 to 2^b - 1, a bit stream per row |
| | weight_scale | [out, groups of a row] | scales, in the dtype of the model |
| | weight_zero_point | int32 [ceil(out * b / 32), groups] | zero points, a bit stream down each column |
| | weight_shape | int64 [2] | out_features, in_features |
| int-quantized | weight | int8 [out, in] | codes from -128 to 127 |
| | weight_scale | [out, 1] or [1] | scales, in the dtype of the model |
| | input_scale | [1] | the scale of static activations |
| | input_zero_point | int8 [1] | their zero point minus 128, where they have one |

The library itself packs and unpacks the words. The words of the config are those of `QuantizationArgs` of
compressed-tensors 0.20; its integer grid is that of `int_sym_gptq` and, shifted by half its width, of `int_asym`; it
multiplies by a negative scale as by any other.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from auto_round.data_type import Codes
from auto_round.errors import ContractError, PluginError
from auto_round.export.packing import Packing, TensorLayout
from auto_round_int.packing_gptq import INTEGERS, SYMMETRIC, groups_across

if TYPE_CHECKING:
    from auto_round.schemes import GroupSize, QuantizationScheme

__all__ = ["IntQuantized", "PackQuantized"]

TOO_OLD = (
    "format llm_compressor packs integers with compressed-tensors 0.20 or later, which is not installed: "
    'pip install "autoround-int[llm_compressor]".'
)

FROZEN_SCALE, FROZEN_RANGE = "input_init_scale", ("input_tensor_min", "input_tensor_max")
"""What codes call that which static activations were frozen to: symmetric ones, others."""


class _CompressedTensors(Packing):
    format = "llm_compressor"

    def scale_dtype(self, weight_dtype: torch.dtype) -> torch.dtype:
        """Scales have the dtype of the model: the library makes room of that dtype for them."""
        return weight_dtype

    def describe(self, data_type: str, scheme: QuantizationScheme) -> Mapping[str, Any]:
        """A config group of compressed-tensors, without its targets."""
        weights = _arguments(scheme.bits, scheme.sym, _strategy(scheme.group_size, "channel"), dynamic=False)
        if not scheme.quantizes_activations:
            return {"format": self.name, "weights": weights}
        assert scheme.act_bits is not None
        assert scheme.act_group_size is not None
        strategy, dynamic = _strategy(scheme.act_group_size, "token"), scheme.act_dynamic is not False
        inputs = _arguments(scheme.act_bits, scheme.act_sym is not False, strategy, dynamic=dynamic)
        return {"format": self.name, "weights": weights, "input_activations": inputs}

    def _refuses(self, data_type: str, scheme: QuantizationScheme, shape: tuple[int, int]) -> str | None:
        """What neither of the two formats takes."""
        size = scheme.group_size
        if data_type not in INTEGERS:
            return f"{self.name} stores {', '.join(INTEGERS)}, not {data_type}"
        if isinstance(size, int) and size > 0 and shape[1] % size:
            return f"{self.name} needs rows of whole groups, and {shape[1]} inputs are no multiple of group_size {size}"
        if not scheme.quantizes_activations:
            return None
        act_size = scheme.act_group_size
        if _activation(scheme) not in INTEGERS:
            return f"{self.name} goes with integer activations, not {scheme.act_data_type}"
        if isinstance(act_size, tuple) or (act_size is not None and act_size > 0 and shape[1] % act_size):
            return f"{self.name} cannot divide {shape[1]} inputs into groups of {act_size}"
        return None


class PackQuantized(_CompressedTensors):
    """Weights of 2 to 8 bits, activations as they are or with scales computed as the model runs."""

    name = "pack-quantized"

    def refuses(self, data_type: str, scheme: QuantizationScheme, shape: tuple[int, int]) -> str | None:
        """Why a weight cannot be stored so; see `Packing.refuses`."""
        if scheme.group_size == 0:
            return f"{self.name} has one scale for a row at least: take group_size -1"
        if _is_static(scheme):
            return f"{self.name} goes with dynamic activations; static ones go with 8-bit weights of group_size -1 or 0"
        if data_type not in SYMMETRIC and scheme.bits == 4 and shape[0] <= 8:
            return f"compressed-tensors cannot read the zero points of {shape[0]} rows of 4 bits, which fill one word"
        return self._refuses(data_type, scheme, shape)

    def layout(self, scheme: QuantizationScheme, shape: tuple[int, int]) -> Mapping[str, TensorLayout]:
        """See the table at the top of this module; scales load into float32, which holds those of every dtype."""
        (rows, cols), across = shape, groups_across(scheme, shape)
        layout: dict[str, TensorLayout] = {
            "weight_packed": ((rows, _words(cols, scheme.bits)), torch.int32),
            "weight_scale": ((rows, across), torch.float32),
            "weight_shape": ((2,), torch.int64),
        }
        if not scheme.sym:
            layout["weight_zero_point"] = ((_words(rows, scheme.bits), across), torch.int32)
        return layout

    def pack(self, codes: Codes) -> Mapping[str, torch.Tensor]:
        """Codes to tensors."""
        bits, pack = codes.scheme.bits, _library("pack_to_int32", codes.scheme.bits)
        middle = 1 << (bits - 1)
        stored, zero_point = codes.tensors["codes"], codes.tensors.get("zero_point")
        if zero_point is not None:
            # The library has signed codes and adds the middle itself; taking it off modulo 256 gives their bytes.
            stored = (stored - middle).view(torch.int8)
        tensors = {
            "weight_packed": pack(stored, bits),
            "weight_scale": _exactly(codes.tensors["scale"], codes.dtype, self.name),
            "weight_shape": torch.tensor(codes.shape),
        }
        if zero_point is not None:
            tensors["weight_zero_point"] = pack((zero_point - middle).view(torch.int8), bits, packed_dim=0).contiguous()
        return tensors

    def unpack(
        self,
        tensors: Mapping[str, torch.Tensor],
        data_type: str,
        scheme: QuantizationScheme,
        shape: tuple[int, int],
        dtype: torch.dtype,
    ) -> Codes:
        """Tensors to codes."""
        unpack, middle = _library("unpack_from_int32", scheme.bits), 1 << (scheme.bits - 1)
        codes, scale = unpack(tensors["weight_packed"], scheme.bits, torch.Size(shape)), tensors["weight_scale"]
        found = {"codes": codes.contiguous(), "scale": scale}
        if not scheme.sym:
            zero_point = unpack(tensors["weight_zero_point"], scheme.bits, scale.shape, packed_dim=0)
            found["codes"] = codes.contiguous().view(torch.uint8) + middle
            found["zero_point"] = zero_point.contiguous().view(torch.uint8) + middle
        return Codes(data_type, scheme, shape, dtype, found)


class IntQuantized(_CompressedTensors):
    """Symmetric weights of 8 bits, one scale for a row or for all, with activations of 8 bits."""

    name = "int-quantized"

    def refuses(self, data_type: str, scheme: QuantizationScheme, shape: tuple[int, int]) -> str | None:
        """Why a weight cannot be stored so; see `Packing.refuses`."""
        if scheme.bits != 8 or scheme.act_bits != 8:
            return f"{self.name} stores weights of 8 bits with activations of 8 bits, as scheme INT8 has them"
        if data_type not in SYMMETRIC:
            return f"{self.name} stores symmetric weights, not {data_type}"
        if scheme.group_size not in (-1, 0):
            return f"{self.name} has one scale for a row or for all of a weight: take group_size -1"
        if _is_static(scheme) and scheme.act_group_size != 0:
            return f"{self.name} has one scale for all static activations: take act_group_size 0"
        return self._refuses(data_type, scheme, shape)

    def layout(self, scheme: QuantizationScheme, shape: tuple[int, int]) -> Mapping[str, TensorLayout]:
        """See the table at the top of this module; scales load into float32, which holds those of every dtype."""
        scales = (1,) if scheme.group_size == 0 else (shape[0], 1)
        layout: dict[str, TensorLayout] = {"weight": (shape, torch.int8), "weight_scale": (scales, torch.float32)}
        if _is_static(scheme):
            layout["input_scale"] = ((1,), torch.float32)
            if scheme.act_sym is False:
                layout["input_zero_point"] = ((1,), torch.int8)
        return layout

    def pack(self, codes: Codes) -> Mapping[str, torch.Tensor]:
        """Codes to tensors."""
        scale = codes.tensors["scale"]
        return {
            "weight": codes.tensors["codes"],
            "weight_scale": _exactly(
                scale.reshape(1) if codes.scheme.group_size == 0 else scale, codes.dtype, self.name
            ),
            **(self._packed_input(codes) if _is_static(codes.scheme) else {}),
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
        found = {"codes": tensors["weight"], "scale": tensors["weight_scale"].reshape(-1, 1)}
        if "input_zero_point" in tensors:
            scale, zero_point = tensors["input_scale"].float(), tensors["input_zero_point"].float() + 128
            found |= dict(zip(FROZEN_RANGE, (-scale * zero_point, scale * (255 - zero_point)), strict=True))
        elif "input_scale" in tensors:
            found[FROZEN_SCALE] = tensors["input_scale"].float().reshape(1, 1)
        return Codes(data_type, scheme, shape, dtype, found)

    def _packed_input(self, codes: Codes) -> dict[str, torch.Tensor]:
        """What static activations were frozen to; `frozen_scales` made the scale fit every dtype."""
        found = codes.tensors
        if FROZEN_SCALE in found:
            return {"input_scale": _exactly(found[FROZEN_SCALE].reshape(1), codes.dtype, self.name)}
        if not all(name in found for name in FROZEN_RANGE):
            raise ContractError(f"{self.name}: activations are static and their scale was not observed.")
        low, high = (found[name].float().reshape(1) for name in FROZEN_RANGE)
        scale = (high - low) / 255
        return {
            "input_scale": _exactly(scale, codes.dtype, self.name),
            "input_zero_point": (-low / scale).round().sub(128).to(torch.int8),
        }


def _is_static(scheme: QuantizationScheme) -> bool:
    return scheme.quantizes_activations and scheme.act_dynamic is False


def _activation(scheme: QuantizationScheme) -> str:
    """The registered name that the data type of activations stands for, as far as it is one of ours."""
    name = str(scheme.act_data_type).rpartition(":")[2].lower()
    return {"int": "int_asym" if scheme.act_sym is False else "int_sym"}.get(name, name)


def _words(count: int, bits: int) -> int:
    """Words of 32 bits that so many codes take."""
    return -(-count * bits // 32)


def _strategy(group_size: GroupSize, row: str) -> dict[str, Any]:
    assert isinstance(group_size, int)
    if group_size > 0:
        return {"strategy": "group", "group_size": group_size}
    return {"strategy": "tensor" if group_size == 0 else row}


def _arguments(bits: int, sym: bool, strategy: Mapping[str, Any], *, dynamic: bool) -> dict[str, Any]:
    return {"num_bits": bits, "type": "int", "symmetric": sym, "dynamic": dynamic, **strategy}


def _exactly(scale: torch.Tensor, dtype: torch.dtype, name: str) -> torch.Tensor:
    """Scales in the dtype of the model.

    Raises:
        ContractError: they would have to be rounded.
    """
    cast = scale.to(dtype)
    if not torch.equal(cast.float(), scale.float()):
        raise ContractError(f"{name} stores scales as {dtype} and got {scale.dtype} ones that it would have to round.")
    return cast


def _library(name: str, bits: int) -> Callable[..., torch.Tensor]:
    """A function of compressed-tensors.

    Raises:
        PluginError: the library is not installed, or too old.
    """
    try:
        helpers = importlib.import_module("compressed_tensors.compressors.pack_quantized.helpers")
        function: Callable[..., torch.Tensor] = getattr(helpers, name)
        # Before 0.20 no code was cut by the end of a word, which made other words of 3, 5, 6 and 7 bits.
        fits = helpers.pack_to_int32(torch.zeros(1, 32, dtype=torch.int8), bits).shape[1] == bits
    except (ImportError, AttributeError) as error:
        raise PluginError(TOO_OLD) from error
    if not fits:
        raise PluginError(TOO_OLD)
    return function
