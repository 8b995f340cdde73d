# SPDX-License-Identifier: Apache-2.0
"""Format `auto_gptq`: checkpoints of GPTQ, version 1, that vLLM, gptqmodel and transformers load by themselves.

The tensors are those of `packing_gptq` with zero points minus one, and `g_idx`. Layers that differ from the most common
settings, and layers in blocks that are left alone, are told by `dynamic`, patterns of names with settings of their own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from auto_round.export.checkpoint import CheckpointFormat
from auto_round_int.packing_gptq import SYMMETRIC, AutoGptq, group_indices

if TYPE_CHECKING:
    import torch

    from auto_round.plan import LayerSpec, Plan
    from auto_round.tuning.result import LayerResult

__all__ = ["AutoGptqFormat", "refused_by_loaders"]


class AutoGptqFormat(CheckpointFormat):
    """Symmetric weights of 2, 3, 4 and 8 bits."""

    name = "auto_gptq"
    summary = "checkpoints of GPTQ, for vLLM, gptqmodel and transformers"
    _packing = AutoGptq()

    def refuses(self, layer: LayerSpec) -> str | None:
        assert layer.data_type is not None
        if layer.data_type.name not in SYMMETRIC:
            return "it is symmetric; for asymmetric weights take auto_awq (4 bits), auto_round or llm_compressor"
        if layer.scheme.bits not in self._packing.bits:
            return f"it has 2, 3, 4 and 8 bits, not {layer.scheme.bits}; auto_round and llm_compressor have 2 to 8"
        if layer.block is None and layer.name.rpartition(".")[2] != "lm_head":
            return "outside the blocks its loaders know the output layer alone, as lm_head; leave this one at 16 bits"
        return refused_by_loaders(layer)

    def scale_dtype(self, layer: LayerSpec) -> torch.dtype:
        """Scales are float16."""
        return self._packing.scale_dtype(layer.dtype)

    def pack(self, result: LayerResult) -> Mapping[str, torch.Tensor]:
        assert result.codes is not None
        return {**self._packing.pack(result.codes), "g_idx": group_indices(result.codes.scheme, result.codes.shape)}

    def quantization_config(self, plan: Plan) -> dict[str, Any]:
        """What `GPTQConfig` of transformers, vLLM and gptqmodel read, each its part."""
        from auto_round import __version__

        ((bits, group_size), _), *_ = Counter(_settings(layer) for layer in plan.quantized).most_common(1)
        dynamic: dict[str, dict[str, Any]] = {f"-:^{re.escape(name)}$": {} for name in plan.left_in_blocks}
        for layer in plan.quantized:
            if _settings(layer) != (bits, group_size):
                settings = dict(zip(("bits", "group_size"), _settings(layer), strict=True))
                dynamic |= {f"+:^{re.escape(name)}$": settings for name in (layer.name, layer.stored_name)}
        config: dict[str, Any] = {
            "quant_method": "gptq",
            "bits": bits,
            "group_size": group_size,
            "sym": True,
            "desc_act": False,
            "checkpoint_format": "gptq",
            "lm_head": any(layer.block is None for layer in plan.quantized),
            "autoround_version": __version__,
        }
        if dynamic:
            config["dynamic"] = dynamic
        if any(layer.block is not None and not layer.quantized for layer in plan.layers):
            config["modules_in_block_to_quantize"] = [[layer.name for layer in plan.quantized if layer.block]]
        return config


def refused_by_loaders(layer: LayerSpec) -> str | None:
    """What loaders of GPTQ and of AWQ alike do not take, or None."""
    scheme, (rows, cols) = layer.scheme, layer.shape
    if scheme.quantizes_activations:
        return "it leaves activations alone; take format llm_compressor"
    if layer.transposed:
        return "its loaders know Linear layers only, and this one keeps its weight as [in, out]; take format auto_round"
    if rows % 32 or cols % 32:
        return f"both sides of a weight have to be multiples of 32, not {layer.shape}; leave it at 16 bits"
    size = scheme.group_size
    if not isinstance(size, int) or size == 0 or size < -1:
        return f"it has groups along a row (group_size -1 for whole rows), not {size}"
    if size > 0 and cols % size:
        return f"{cols} inputs are no whole number of groups of {size}; take a group_size that divides them, or -1"
    return None


def _settings(layer: LayerSpec) -> tuple[int, int]:
    assert isinstance(layer.scheme.group_size, int)
    return layer.scheme.bits, layer.scheme.group_size
