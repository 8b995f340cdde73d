# SPDX-License-Identifier: Apache-2.0
"""Format `fp8`: fine-grained FP8, the files that DeepSeek-V3 introduced and transformers and vLLM load by themselves.

A layer is `weight`, e4m3 [out_features, in_features], and `weight_scale_inv`, float32 [blocks down, blocks across]:
what the codes of a block are multiplied by. Activations are e4m3 too, with a scale for each token and as many inputs as
a block is wide, computed as the model runs. DeepSeek-AI 2024, "DeepSeek-V3 Technical Report", arXiv:2412.19437, 3.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from auto_round.export.checkpoint import CheckpointFormat
from auto_round_fp8.fine_grained_input import FineGrainedInput
from auto_round_fp8.packing_auto_round import E4M3_NAMES, exactly

if TYPE_CHECKING:
    from auto_round.plan import LayerSpec, Plan
    from auto_round.tuning.result import LayerResult

__all__ = ["FineGrained"]

WANTED = "take scheme FP8_BLOCK"


class FineGrained(CheckpointFormat):
    """Blocks of e4m3 in plain Linear layers."""

    name = "fp8"
    summary = "fine-grained FP8, for transformers and vLLM"

    def refuses(self, layer: LayerSpec) -> str | None:
        assert layer.data_type is not None
        scheme, (rows, cols) = layer.scheme, layer.shape
        if layer.data_type.name not in E4M3_NAMES or not isinstance(scheme.group_size, tuple):
            return f"it stores e4m3 in blocks; {WANTED}"
        m, n = scheme.group_size
        dynamic = (scheme.act_bits, scheme.act_group_size, scheme.act_dynamic) == (8, n, True)
        if not dynamic or layer.activation is None or layer.activation.name not in E4M3_NAMES:
            return f"its runtimes compute with activations of 8 bits, e4m3 in dynamic groups of {n}; {WANTED}"
        if (rows % m and rows > m) or (cols % n and cols > n):
            # Loaders take the size of a block from the shape of the scales, and cut such a weight in equal parts.
            return f"{rows} by {cols} is no whole number of {m} by {n} blocks; leave it at 16 bits with layer_config"
        if layer.transposed:
            return "its loaders know Linear layers only, and this one keeps its weight the other way round"
        return None

    def refuses_plan(self, plan: Plan) -> list[str]:
        """One size of blocks for the whole model."""
        sizes = {str(layer.scheme.group_size) for layer in plan.quantized}
        return (
            [f"format {self.name} has one size of blocks, not {' and '.join(sorted(sizes))}."] if len(sizes) > 1 else []
        )

    def scale_dtype(self, layer: LayerSpec) -> torch.dtype:
        """Scales are float32."""
        return torch.float32

    def pack(self, result: LayerResult) -> Mapping[str, torch.Tensor]:
        assert result.codes is not None
        tensors = result.codes.tensors
        return {"weight": tensors["codes"], "weight_scale_inv": exactly(tensors["scale"], torch.float32, self.name)}

    def reader(self, quantization_config: Mapping[str, Any]) -> FineGrainedInput | None:
        """Its own files, and those of models that are published so."""
        return FineGrainedInput.of(quantization_config)

    def quantization_config(self, plan: Plan) -> dict[str, Any]:
        """What `FineGrainedFP8Config` of transformers reads, every Linear that is as it was named."""
        block = plan.quantized[0].scheme.group_size if plan.quantized else (128, 128)
        assert isinstance(block, tuple)
        return {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": list(block),
            "modules_to_not_convert": list(plan.left_alone),
        }
