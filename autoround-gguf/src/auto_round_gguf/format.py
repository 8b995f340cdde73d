# SPDX-License-Identifier: Apache-2.0
"""Format `gguf`: one file that llama.cpp runs, written tensor by tensor."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from auto_round.export.format import Exporter, OutputFormat
from auto_round_gguf.architectures import ARCHITECTURES
from auto_round_gguf.block import BlockDataType
from auto_round_gguf.metadata import refusals
from auto_round_gguf.mixtures import PRESETS, Preset, file_type
from auto_round_gguf.names import map_name, split_expert
from auto_round_gguf.schemes import GGUFScheme
from auto_round_gguf.settings import shard_bytes
from auto_round_gguf.writer import GGUFExporter

if TYPE_CHECKING:
    from auto_round.model.opened import OpenModel
    from auto_round.plan import LayerSpec, Plan

__all__ = ["GGUFFormat", "PresetFormat"]


class GGUFFormat(OutputFormat):
    """GGUF for whatever block types a plan has."""

    name = "gguf"
    summary = "one file for llama.cpp and what is built on it"
    own_names = True

    def refuses(self, layer: LayerSpec) -> str | None:
        if isinstance(layer.data_type, BlockDataType):
            return None
        return "it stores the block types of llama.cpp; name a scheme of theirs, such as GGUF:Q4_K_M"

    def refuses_plan(self, plan: Plan) -> list[str]:
        known = {architecture.model_class: architecture.name for architecture in ARCHITECTURES.values()}
        if plan.architecture not in known:
            return [f"format {self.name} cannot write {plan.architecture}; it can write {', '.join(sorted(known))}."]
        problems = [] if plan.config is None else refusals(ARCHITECTURES[plan.config.model_type], plan.config)
        unlike = [f"llama.cpp cannot run {plan.model}: {problem}." for problem in problems]
        return [*unlike, *_homeless(plan, known[plan.architecture]), *_experts_apart(plan)]

    def scale_dtype(self, layer: LayerSpec) -> torch.dtype | None:
        return torch.float16

    def start(self, plan: Plan, model: OpenModel, directory: Path) -> Exporter:
        architecture = ARCHITECTURES[model.model.config.model_type]
        preset = preset_of(plan)
        stem = Path(plan.model).name or plan.architecture
        path = directory / f"{stem}-{preset.name}.gguf"
        return GGUFExporter(plan, model, architecture, preset, path, shard_bytes())


class PresetFormat(GGUFFormat):
    """GGUF of one preset, for the name that says both."""

    def __init__(self, preset: Preset) -> None:
        self.name = f"gguf:{preset.name.lower()}"
        self.scheme = f"GGUF:{preset.name}"
        self.summary = f"GGUF, scheme {self.scheme}"
        self._preset = preset

    def refuses_plan(self, plan: Plan) -> list[str]:
        problems = super().refuses_plan(plan)
        if preset_of(plan).name != self._preset.name:
            problems.append(
                f"format {self.name} holds scheme {self.scheme}, not {plan.scheme_name}; name both or neither."
            )
        return problems


def _homeless(plan: Plan, architecture: str) -> list[str]:
    """Layers without a place in a file: an output of its own where llama.cpp knows only tied ones."""
    return [
        f"llama.cpp has no place for layer {layer.name} in a model of architecture {architecture}."
        for layer in plan.quantized
        if map_name(architecture, split_expert(layer.name)[0], len(plan.blocks)) is None
    ]


def _experts_apart(plan: Plan) -> list[str]:
    """A file holds the experts of a block as one tensor, which has one type."""
    types: dict[str, set[str]] = {}
    for layer in plan.layers:
        whole, expert = split_expert(layer.name)
        if expert is not None:
            types.setdefault(whole, set()).add(layer.data_type.name if layer.data_type else "none")
    return [
        f"the experts of {name} are one tensor in a file, which cannot be of the types {' and '.join(sorted(found))}."
        for name, found in types.items()
        if len(found) > 1
    ]


def preset_of(plan: Plan) -> Preset:
    """The preset of a plan, or one that says what most of its layers are."""
    if isinstance(plan.scheme, GGUFScheme) and plan.scheme.preset:
        return PRESETS[plan.scheme.preset]
    kinds = [
        layer.data_type.block_type(layer.scheme.bits)
        for layer in plan.quantized
        if isinstance(layer.data_type, BlockDataType)
    ]
    if not kinds:
        return Preset("none", "q8_0", 0)
    most = Counter(kinds).most_common(1)[0][0]
    return Preset(most.name.upper(), most.name, file_type(most))


GGUF = GGUFFormat()
Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 = (PresetFormat(PRESETS[n]) for n in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"))
Q2_K, Q2_K_S, Q2_K_MIXED = (PresetFormat(PRESETS[n]) for n in ("Q2_K", "Q2_K_S", "Q2_K_MIXED"))
Q3_K_S, Q3_K_M, Q3_K_L = (PresetFormat(PRESETS[n]) for n in ("Q3_K_S", "Q3_K_M", "Q3_K_L"))
Q4_K_S, Q4_K_M, Q5_K_S, Q5_K_M = (PresetFormat(PRESETS[n]) for n in ("Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M"))
Q6_K = PresetFormat(PRESETS["Q6_K"])
