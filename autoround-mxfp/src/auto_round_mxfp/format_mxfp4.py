# SPDX-License-Identifier: Apache-2.0
"""Format `mxfp4`: gpt-oss models as they are published, which transformers loads by itself, quant_method `mxfp4`.

Routed experts are MXFP4 in the layout of `fused_experts`, their biases lie beside them as the model keeps them,
NAME_bias [experts, out_features], and everything else stays as it is.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from auto_round.errors import ContractError
from auto_round.export.checkpoint import CheckpointExporter, CheckpointFormat
from auto_round.model.experts import SplitExperts
from auto_round.names import and_more
from auto_round_mxfp.elements import E2M1
from auto_round_mxfp.fused_experts import pack_experts
from auto_round_mxfp.mixture import expert_place
from auto_round_mxfp.names import element_of
from auto_round_mxfp.packing import BLOCK

if TYPE_CHECKING:
    from auto_round.data_type import Codes
    from auto_round.export.format import Exporter
    from auto_round.model.opened import OpenModel
    from auto_round.plan import LayerSpec, Plan
    from auto_round.tuning.result import LayerResult

__all__ = ["GptOssFormat"]

ARCHITECTURES = ("GptOssForCausalLM",)
"""The models whose experts the loader of transformers replaces."""

NOT_CONVERTED = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
"""What the config of the published checkpoints names as left alone; here, too, it is everything but the experts."""

WANTED = "take scheme MXFP4_MOE"


class GptOssFormat(CheckpointFormat):
    """One tensor of codes and one of scales for all experts of a block."""

    name = "mxfp4"
    summary = "gpt-oss models with experts in MXFP4, as they are published; transformers loads them by itself"
    own_names = True

    def refuses(self, layer: LayerSpec) -> str | None:
        assert layer.data_type is not None
        scheme = layer.scheme
        if expert_place(layer.name) is None:
            return f"it has quantized routed experts and nothing else that is quantized; {WANTED}"
        if element_of(layer.data_type.name, scheme.bits) is not E2M1 or scheme.group_size != BLOCK:
            return f"it stores e2m1 in blocks of {BLOCK}; {WANTED}"
        if scheme.quantizes_activations:
            return f"its loader leaves activations as they are; {WANTED}"
        if layer.shape[1] % BLOCK:
            return f"in_features must be a multiple of {BLOCK}, not {layer.shape[1]}"
        return None

    def refuses_plan(self, plan: Plan) -> list[str]:
        """Other models than gpt-oss, and experts that are left alone, which have no place beside the others."""
        if plan.architecture not in ARCHITECTURES:
            return [f"format {self.name} is for {' and '.join(ARCHITECTURES)}, not for {plan.architecture}."]
        left = [layer.name for layer in plan.layers if expert_place(layer.name) and not layer.quantized]
        if not left:
            return []
        return [f"format {self.name} stores all experts quantized, not without {and_more(left)}; {WANTED}."]

    def pack(self, result: LayerResult) -> Mapping[str, torch.Tensor]:
        """A layer alone has no tensors."""
        raise ContractError(f"format {self.name} packs all experts of a block at once, not {result.layer.name} alone.")

    def quantization_config(self, plan: Plan) -> dict[str, Any]:
        """What `Mxfp4Config` of transformers reads, and who made it."""
        from auto_round import __version__

        return {
            "quant_method": "mxfp4",
            "modules_to_not_convert": NOT_CONVERTED,
            "provider": "auto-round",
            "autoround_version": __version__,
        }

    def start(self, plan: Plan, model: OpenModel, directory: Path) -> Exporter:
        return _Exporter(self, plan, model, directory)


class _Exporter(CheckpointExporter):
    """Keeps the codes of a block's experts until the last one is there, as core hands them out: a block at a time."""

    def __init__(self, output_format: GptOssFormat, plan: Plan, model: OpenModel, directory: Path) -> None:
        super().__init__(output_format, plan, model, directory)
        self._expected = Counter(_parameter(layer)[0] for layer in plan.quantized)
        self._waiting: dict[str, dict[int, Codes]] = defaultdict(dict)

    def tensors(self, result: LayerResult) -> Iterator[tuple[str, torch.Tensor]]:
        assert result.codes is not None
        name, expert = _parameter(result.layer)
        self._waiting[name][expert] = result.codes
        if len(self._waiting[name]) == self._expected[name]:
            of_expert = self._waiting.pop(name)
            blocks, scales = pack_experts([of_expert[index] for index in range(len(of_expert))])
            yield f"{name}_blocks", blocks
            yield f"{name}_scales", scales

    def rest(self) -> Iterator[tuple[str, torch.Tensor]]:
        for block in self.model.structure.blocks:
            with self.model.brought(block):
                yield from _biases(block, self.model.model.get_submodule(block))
        for name, tensor in super().rest():
            if expert_place(name.removesuffix(".bias")) is None:
                yield name, tensor


def _biases(name: str, block: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Of all experts of a block together, as files have them."""
    for inner, module in block.named_modules():
        if isinstance(module, SplitExperts):
            for parameter in module.fused_names:
                if parameter.endswith("_bias"):
                    yield f"{name}.{inner}.{parameter}", module.joined(parameter)


def _parameter(layer: LayerSpec) -> tuple[str, int]:
    """The parameter of the model that a layer is a part of, and which expert's part it is."""
    place = expert_place(layer.name)
    assert place is not None
    experts, index, leaf = place
    return f"{experts}.{leaf}", index
