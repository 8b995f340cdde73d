# SPDX-License-Identifier: Apache-2.0
"""e4m3 as compressed-tensors keeps it: `weight`, `weight_scale` and, for static activations, `input_scale`.

| strategy | group_size | weight_scale |
|---|---|---|
| tensor | 0 | [1] |
| channel | -1 | [out_features, 1] |
| group | n | [out_features, groups of a row] |
| block | (m, n) | [blocks down, blocks across] |

Scales have the dtype of the model: the library makes room of that dtype for them, whatever a file holds. The words of
the config are those of `QuantizationArgs` of compressed-tensors 0.20.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from auto_round.data_type import Codes
from auto_round.export.packing import Packing, TensorLayout
from auto_round_fp8.float8 import scale_shape
from auto_round_fp8.packing_auto_round import (
    E4M3_NAMES,
    exactly,
    holds,
    is_static,
    packed_input_scale,
    unpacked_input_scale,
)

if TYPE_CHECKING:
    from auto_round.schemes import GroupSize, QuantizationScheme

__all__ = ["FloatQuantized"]


class FloatQuantized(Packing):
    """Every grouping of e4m3, with activations of e4m3 or at full precision."""

    name = "float-quantized"
    format = "llm_compressor"

    def refuses(self, data_type: str, scheme: QuantizationScheme, shape: tuple[int, int]) -> str | None:
        """Why a weight cannot be stored so; see `Packing.refuses`."""
        inputs = scheme.group_size[1] if isinstance(scheme.group_size, tuple) else scheme.group_size
        if inputs > 0 and shape[1] % inputs:
            return f"{self.name} needs the inputs of a weight, {shape[1]}, to be a multiple of the group, {inputs}"
        if is_static(scheme) and scheme.act_group_size != 0:
            return f"{self.name} has one scale for all static activations (act_group_size 0)"
        act_group = scheme.act_group_size if scheme.quantizes_activations else None
        if isinstance(act_group, tuple) or (act_group is not None and act_group > 0 and shape[1] % act_group):
            return f"{self.name} cannot divide {shape[1]} inputs into groups of {act_group}"
        return holds(data_type, scheme, E4M3_NAMES, self.name)

    def scale_dtype(self, weight_dtype: torch.dtype) -> torch.dtype:
        """Scales have the dtype of the model."""
        return weight_dtype

    def describe(self, data_type: str, scheme: QuantizationScheme) -> Mapping[str, Any]:
        """The config group; weights alone are what compressed-tensors calls naive."""
        weights = _arguments(_strategy(scheme.group_size), dynamic=False)
        if not scheme.quantizes_activations:
            return {"format": "naive-quantized", "weights": weights}
        act_group_size = scheme.act_group_size
        assert act_group_size is not None
        strategy = {"strategy": "token"} if act_group_size == -1 else _strategy(act_group_size)
        inputs = _arguments(strategy, dynamic=not is_static(scheme))
        return {"format": "float-quantized", "weights": weights, "input_activations": inputs}

    def describe_cache(self, data_type: str, scheme: QuantizationScheme) -> Mapping[str, Any]:
        """The `kv_cache_scheme`: e4m3, one scale for all keys of a layer and one for all values."""
        if data_type not in E4M3_NAMES or not is_static(scheme) or scheme.act_group_size != 0:
            return {}
        return _arguments(_strategy(0), dynamic=False)

    def pack_cache(self, frozen: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """A scale [1], rounded to the dtype of the model, as compressed-tensors keeps it."""
        return frozen["init_scale"].to(dtype).reshape(1)

    def layout(self, scheme: QuantizationScheme, shape: tuple[int, int]) -> Mapping[str, TensorLayout]:
        """See the table at the top of this module; scales load into float32, which holds those of every dtype."""
        layout = {
            "weight": (shape, torch.float8_e4m3fn),
            "weight_scale": (_stored_shape(scheme, shape), torch.float32),
        }
        return layout | ({"input_scale": ((1,), torch.float32)} if is_static(scheme) else {})

    def pack(self, codes: Codes) -> Mapping[str, torch.Tensor]:
        """Codes to tensors."""
        scale = codes.tensors["scale"].reshape(_stored_shape(codes.scheme, codes.shape))
        return {
            "weight": codes.tensors["codes"],
            "weight_scale": exactly(scale, codes.dtype, self.name),
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
        scale = tensors["weight_scale"].reshape(scale_shape(shape, scheme.group_size))
        found = {"codes": tensors["weight"], "scale": scale, **unpacked_input_scale(tensors)}
        return Codes(data_type, scheme, shape, dtype, found)


def _stored_shape(scheme: QuantizationScheme, shape: tuple[int, int]) -> tuple[int, ...]:
    return (1,) if scheme.group_size == 0 else scale_shape(shape, scheme.group_size)


def _strategy(group_size: GroupSize) -> dict[str, Any]:
    if isinstance(group_size, tuple):
        return {"strategy": "block", "block_structure": list(group_size)}
    named: dict[int, dict[str, Any]] = {0: {"strategy": "tensor"}, -1: {"strategy": "channel"}}
    return named.get(group_size, {"strategy": "group", "group_size": group_size})


def _arguments(strategy: Mapping[str, Any], *, dynamic: bool) -> dict[str, Any]:
    return {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": dynamic, **strategy}
