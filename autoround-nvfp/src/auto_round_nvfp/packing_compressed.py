# SPDX-License-Identifier: Apache-2.0
"""`nv_fp4` as compressed-tensors stores it, format `nvfp4-pack-quantized`, packed by that library itself."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from auto_round_nvfp.minifloat import e2m1_values
from auto_round_nvfp.packing import PackedNvFp4, keeps_input_scale

if TYPE_CHECKING:
    from auto_round.schemes import QuantizationScheme

__all__ = ["CompressedNvFp4"]

_COMMON = {
    "num_bits": 4,
    "type": "float",
    "strategy": "tensor_group",
    "group_size": 16,
    "symmetric": True,
    "scale_dtype": "torch.float8_e4m3fn",
    "zp_dtype": "torch.float8_e4m3fn",
}
"""A config group's words for E2M1 in blocks of 16 under E4M3 scales and one scale of the tensor."""


class CompressedNvFp4(PackedNvFp4):
    """The tensors of `PackedNvFp4`, in a container that vLLM and others read."""

    name = "nvfp4-pack-quantized"
    aliases = ()
    format = "llm_compressor"

    def refuses(self, data_type: str, scheme: QuantizationScheme, shape: tuple[int, int]) -> str | None:
        """As its parent, and without the library that packs."""
        refusal = super().refuses(data_type, scheme, shape)
        if refusal is None and scheme.quantizes_activations and not keeps_input_scale(scheme):
            return (
                f"{self.name} takes activations in nv_fp4_with_static_gs or full precision, not {scheme.act_data_type}"
            )
        if refusal is None and importlib.util.find_spec("compressed_tensors") is None:
            return f"{self.name} is packed by compressed-tensors: pip install 'autoround-nvfp[llm_compressor]'"
        return refusal

    def describe(self, data_type: str, scheme: QuantizationScheme) -> Mapping[str, Any]:
        """The config group of layers packed so."""
        described: dict[str, Any] = {"format": self.name, "weights": {**_COMMON, "dynamic": False}}
        if keeps_input_scale(scheme):
            described["input_activations"] = {**_COMMON, "dynamic": "local", "observer": "static_minmax"}
        return described

    def pack_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """By the library's own helper, which takes values."""
        from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8  # type: ignore[import-untyped,unused-ignore]

        packed: torch.Tensor = pack_fp4_to_uint8(e2m1_values(codes))
        return packed
