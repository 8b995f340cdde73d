# SPDX-License-Identifier: Apache-2.0
"""Format `fake`: the weights a quantized model computes with, stored at full precision. For research."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from auto_round.export.checkpoint import CheckpointExporter, CheckpointFormat
from auto_round.model.file_names import as_in_files

if TYPE_CHECKING:
    import torch

    from auto_round.export.format import Exporter
    from auto_round.model.opened import OpenModel
    from auto_round.plan import LayerSpec, Plan
    from auto_round.tuning.result import LayerResult

__all__ = ["FakeFormat"]


class FakeFormat(CheckpointFormat):
    """Takes every data type, one without a stored form included."""

    name = "fake"
    summary = "dequantized weights at full precision, for research"
    joins = True

    def pack(self, result: LayerResult) -> Mapping[str, torch.Tensor]:
        return {"weight": result.weight.T if result.layer.transposed else result.weight}

    def bits_per_weight(self, layer: LayerSpec) -> float:
        return layer.dtype.itemsize * 8.0

    def quantization_config(self, plan: Plan) -> dict[str, Any] | None:
        return None

    def start(self, plan: Plan, model: OpenModel, directory: Path) -> Exporter:
        return _Exporter(self, plan, model, directory)


class _Exporter(CheckpointExporter):
    """Experts that files have in one tensor wait for the last of them, as core hands them out: a block at a time."""

    def __init__(self, output_format: FakeFormat, plan: Plan, model: OpenModel, directory: Path) -> None:
        super().__init__(output_format, plan, model, directory)
        self._expected = Counter(_place(layer.name)[0] for layer in plan.quantized if layer.fused)
        self._waiting: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)

    def tensors(self, result: LayerResult) -> Iterator[tuple[str, torch.Tensor]]:
        if not result.layer.fused:
            yield from super().tensors(result)
            return
        experts, layer = _place(result.layer.name)
        self._waiting[experts][layer] = result.weight
        if len(self._waiting[experts]) == self._expected[experts]:
            assert result.layer.block is not None
            with self.model.brought(result.layer.block):
                module = self.model.model.get_submodule(experts)
                weights = self._waiting.pop(experts)
                joined = {f"{experts}.{name}": module.joined(name, weights) for name in module.fused_names}
                yield from as_in_files(self.model.model, joined)

    def rest(self) -> Iterator[tuple[str, torch.Tensor]]:
        written = tuple(f"{experts}." for experts in self._expected)  # biases, and those that are left alone, too
        return ((name, tensor) for name, tensor in super().rest() if not name.startswith(written))


def _place(layer: str) -> tuple[str, str]:
    """The module that keeps a layer and all its like in one tensor, and the layer's name below it."""
    experts, index, leaf = layer.rsplit(".", 2)
    return experts, f"{index}.{leaf}"
