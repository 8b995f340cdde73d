# SPDX-License-Identifier: Apache-2.0
"""Format `llm_compressor`: checkpoints of the compressed-tensors library, which vLLM and transformers load.

The container writes the config; what a group says of its weights and activations, and the tensors, come from the
packings of the data types in the plan, so a mixture of data types is just several groups.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from auto_round.export.packed import ContainerFormat

if TYPE_CHECKING:
    from auto_round.plan import LayerSpec, Plan

__all__ = ["LLMCompressorFormat"]

MIXED = "mixed-precision"
"""What the library calls a checkpoint whose groups are stored differently."""


class LLMCompressorFormat(ContainerFormat):
    """One config group for each way layers are stored; every other linear layer is named in `ignore`.

    A linear layer that is neither in a group nor ignored would be taken for quantized by whoever loads the file, and
    compute with uninitialized scales.
    """

    name = "llm_compressor"
    summary = "checkpoints of compressed-tensors, for vLLM and transformers"

    def refuses(self, layer: LayerSpec) -> str | None:
        if layer.transposed:
            return "compressed-tensors knows linear layers that keep weights as [out, in] only."
        return super().refuses(layer)

    def notes(self, plan: Plan) -> list[str]:
        left = next(
            (layer.name for layer in plan.layers if layer.expert and not layer.fused and not layer.quantized), None
        )
        told = "transformers 5.23 does not read experts that are left alone beside quantized layers in format"
        return [] if left is None else [f"{told} {self.name}, {left} first; vLLM does, and format auto_round loads."]

    def quantization_config(self, plan: Plan) -> dict[str, Any]:
        from auto_round import __version__

        groups: dict[str, tuple[Mapping[str, Any], list[str]]] = {}
        for layer in plan.quantized:
            assert layer.data_type is not None
            described = self.packing(layer).describe(layer.data_type.name, layer.scheme)
            names = groups.setdefault(json.dumps(described, sort_keys=True), (described, []))[1]
            names += dict.fromkeys((layer.name, layer.stored_name))
        formats = {str(described["format"]) for described, _ in groups.values()}
        config_groups = {
            f"group_{index}": {
                "targets": ["Linear"] if len(groups) == 1 else names,
                "weights": described["weights"],
                "input_activations": described.get("input_activations"),
                "output_activations": None,
                "format": described["format"],
            }
            for index, (described, names) in enumerate(groups.values())
        }
        caching = None if plan.cache is None else self.cache_packing(plan.cache)
        cache = caching and plan.cache and dict(caching.describe_cache(plan.cache.data_type.name, plan.cache.scheme))
        return {
            "quant_method": "compressed-tensors",
            "quantization_status": "compressed",
            "format": formats.pop() if len(formats) == 1 else MIXED,
            "config_groups": config_groups,
            "ignore": list(plan.left_alone),
            "kv_cache_scheme": cache,
            "provider": "auto-round",
            "autoround_version": __version__,
        }
