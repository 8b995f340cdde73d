# SPDX-License-Identifier: Apache-2.0
"""Format `gguf`: one file that llama.cpp runs, written tensor by tensor."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from auto_round.errors import PlanError
from auto_round.export.format import Exporter, OutputFormat
from auto_round_gguf.architectures import ARCHITECTURES
from auto_round_gguf.block import BlockDataType
from auto_round_gguf.metadata import refusals
from auto_round_gguf.mixtures import PRESETS, GGUFScheme, Preset, file_type
from auto_round_gguf.writer import GGUFExporter

if TYPE_CHECKING:
    from auto_round.model.opened import OpenModel
    from auto_round.plan import LayerSpec, Plan

__all__ = ["GGUFFormat", "PresetFormat"]


class GGUFFormat(OutputFormat):
    """GGUF for whatever block types a plan has.

    Attributes:
        shard_bytes: files are cut where they would grow beyond this; 0 writes one.
    """

    name = "gguf"
    summary = "one file for llama.cpp and what is built on it"

    def __init__(self) -> None:
        self.shard_bytes = 0

    def refuses(self, layer: LayerSpec) -> str | None:
        if isinstance(layer.data_type, BlockDataType):
            return None
        return "it stores the block types of llama.cpp; name a scheme of theirs, such as GGUF:Q4_K_M"

    def refuses_plan(self, plan: Plan) -> list[str]:
        known = {architecture.model_class for architecture in ARCHITECTURES.values()}
        if plan.architecture in known:
            return []
        return [f"format {self.name} cannot write {plan.architecture}; it can write {', '.join(sorted(known))}."]

    def scale_dtype(self, layer: LayerSpec) -> torch.dtype | None:
        return torch.float16

    def start(self, plan: Plan, model: OpenModel, directory: Path) -> Exporter:
        """Begin to write.

        Raises:
            PlanError: llama.cpp would compute something else than this model, or cannot read its tokenizer.
        """
        config = model.model.config
        architecture = ARCHITECTURES[config.model_type]
        problems = refusals(architecture, config)
        if problems:
            raise PlanError([f"llama.cpp cannot run {plan.model}: {problem}." for problem in problems])
        preset = preset_of(plan)
        stem = Path(plan.model).name or plan.architecture
        return GGUFExporter(
            plan, model, architecture, preset, directory / f"{stem}-{preset.name}.gguf", self.shard_bytes
        )


class PresetFormat(GGUFFormat):
    """GGUF of one preset, for the name that says both."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
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
