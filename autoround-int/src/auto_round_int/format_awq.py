# SPDX-License-Identifier: Apache-2.0
"""Format `auto_awq`: checkpoints of AWQ, version `gemm`, that vLLM and transformers load by themselves.

The tensors are those of `packing_awq`; every layer that is as it was is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from auto_round.export.checkpoint import CheckpointFormat
from auto_round_int.format_gptq import refused_by_loaders
from auto_round_int.packing_awq import AutoAwq
from auto_round_int.packing_gptq import INTEGERS

if TYPE_CHECKING:
    import torch

    from auto_round.plan import LayerSpec, Plan
    from auto_round.tuning.result import LayerResult

__all__ = ["AutoAwqFormat"]


class AutoAwqFormat(CheckpointFormat):
    """Weights of four bits, symmetric ones with 8 for every zero point."""

    name = "auto_awq"
    summary = "checkpoints of AWQ, 4 bits, for vLLM and transformers"
    _packing = AutoAwq()

    def refuses(self, layer: LayerSpec) -> str | None:
        assert layer.data_type is not None
        if layer.data_type.name not in INTEGERS:
            return f"it stores integers, not {layer.data_type.name}"
        if layer.scheme.bits != 4:
            return f"it has 4 bits, not {layer.scheme.bits}; auto_gptq has 2, 3, 4 and 8, auto_round 2 to 8"
        if layer.block is None:
            return "its loaders leave everything outside the blocks alone; leave this layer at 16 bits"
        return refused_by_loaders(layer)

    def refuses_plan(self, plan: Plan) -> list[str]:
        """One group size for the whole model."""
        sizes = sorted({str(layer.scheme.group_size) for layer in plan.quantized})
        if len(sizes) < 2:
            return []
        return [f"format {self.name} has one group_size for all layers, not {' and '.join(sizes)}; auto_gptq mixes."]

    def scale_dtype(self, layer: LayerSpec) -> torch.dtype:
        """Scales are float16."""
        return self._packing.scale_dtype(layer.dtype)

    def pack(self, result: LayerResult) -> Mapping[str, torch.Tensor]:
        assert result.codes is not None
        return self._packing.pack(result.codes)

    def quantization_config(self, plan: Plan) -> dict[str, Any]:
        """What `AwqConfig` of transformers and vLLM read."""
        return {
            "quant_method": "awq",
            "bits": 4,
            "group_size": next(layer.scheme.group_size for layer in plan.quantized),
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": list(plan.left_alone),
        }
