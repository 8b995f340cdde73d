# SPDX-License-Identifier: Apache-2.0
"""Format `auto_round`: the container every data type fits in; transformers reads it, others by the packing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from auto_round.export.named import NamedCodes
from auto_round.export.packed import ContainerFormat
from auto_round.names import and_more, experts_above

if TYPE_CHECKING:
    from auto_round.export.packing import Packing
    from auto_round.plan import LayerSpec, Plan

__all__ = ["AutoRoundFormat"]

ALONE = "transformers does not find experts at full precision beside quantized ones; leave all of a block, or none"


class AutoRoundFormat(ContainerFormat):
    """Picks, for each layer, the first packing that takes it, families' packings before the plain one."""

    name = "auto_round"
    summary = "the generic container; loads through transformers, and in vLLM where a packing it knows is used"
    takes_apart = True

    def refusal(self, packing: Packing, layer: LayerSpec) -> str | None:
        reason = super().refusal(packing, layer)
        if reason is None and layer.expert and "weight" in packing.layout(layer.scheme, layer.shape):
            return f"{packing.name} calls a tensor `weight`, which transformers does not load of single experts"
        return reason

    def candidates(self) -> Sequence[Packing]:
        chosen = super().candidates()
        return chosen if self.only is not None else [*chosen, NamedCodes(self.plugins)]

    def refuses_plan(self, plan: Plan) -> list[str]:
        beside = {experts_above(layer.name) for layer in plan.quantized if layer.expert}
        left = [layer.name for layer in plan.layers if layer.expert and not layer.quantized]
        alone = [name for name in left if experts_above(name) in beside]
        return [f"format {self.name} cannot hold {and_more(alone)}: {ALONE}."] if alone else []

    def notes(self, plan: Plan) -> list[str]:
        odd = next((layer for layer in plan.quantized if layer.interleaved), None)
        told = "holds gate and up of each expert interleaved, which transformers alone reads"
        return [] if odd is None else [f"{odd.name} {told} in format {self.name}."]

    def quantization_config(self, plan: Plan) -> dict[str, Any]:
        """The common scheme at the top, layers that differ below `extra_config`, and who made what."""
        from auto_round import __version__

        settings = {layer.name: self._settings(layer) for layer in plan.layers}
        common = Counter(str(settings[layer.name]) for layer in plan.quantized).most_common(1)
        top = next(s for s in settings.values() if not common or str(s) == common[0][0])
        extra: dict[str, dict[str, Any]] = {}
        for layer in plan.layers:
            if layer.quantized and (settings[layer.name] != top or layer.block is None):
                extra |= dict.fromkeys((layer.name, layer.stored_name), settings[layer.name])
        extra |= {name: {"bits": 16, "data_type": "float"} for name in plan.left_in_blocks}
        group_size = top.get("group_size")
        if group_size == 0 or isinstance(group_size, list):
            # transformers refuses these at the top, before any loader is asked, and looks at nothing below.
            top = {**top, "group_size": -1}
            extra |= {rf"^{re.escape(name)}\.": {"group_size": group_size} for name in plan.block_lists}
        config = {
            "quant_method": "auto-round",
            **top,
            "block_name_to_quantize": ",".join(plan.block_lists),
            "autoround_version": __version__,
            "provenance": self._provenance(plan),
        }
        if extra:
            config["extra_config"] = extra
        return config

    def _settings(self, layer: LayerSpec) -> dict[str, Any]:
        if not layer.quantized:
            return {}
        fields = layer.scheme.to_dict()
        if not layer.scheme.quantizes_activations:
            fields = {key: value for key, value in fields.items() if not key.startswith("act_")}
        packing = self.packing(layer)
        return {**fields, "packing_format": packing.recorded_as or packing.name}

    def _provenance(self, plan: Plan) -> dict[str, dict[str, str]]:
        """For each data type the distribution and version that made it, so that a loader can say what to install."""
        found: dict[str, dict[str, str]] = {}
        for layer in plan.quantized:
            assert layer.data_type is not None
            name = layer.data_type.name
            source = self.plugins.provenance(layer.data_type)
            made = {"distribution": source.distribution, "version": source.version}
            # Two plugins may have one name for theirs, and a model both.
            found[name if found.get(name, made) == made else f"{source.distribution or source.plugin}:{name}"] = made
        return found
