# SPDX-License-Identifier: Apache-2.0
"""What every Hugging Face checkpoint has in common: shards, config.json, the tokenizer's files."""

from __future__ import annotations

import json
import shutil
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from auto_round.export.format import Exporter, OutputFormat
from auto_round.export.shards import ShardWriter

if TYPE_CHECKING:
    import torch

    from auto_round.model.opened import OpenModel
    from auto_round.plan import CachePlan, Plan
    from auto_round.tuning.result import CacheResult, LayerResult

__all__ = ["CheckpointExporter", "CheckpointFormat"]

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx")


class CheckpointFormat(OutputFormat):
    """A format that is a directory transformers can read."""

    @abstractmethod
    def pack(self, result: LayerResult) -> Mapping[str, torch.Tensor]:
        """The tensors of one finished layer, by name below the layer's own."""

    @abstractmethod
    def quantization_config(self, plan: Plan) -> dict[str, Any] | None:
        """The entry of config.json, or None for a checkpoint that is not quantized any more."""

    def pack_cache(self, cache: CachePlan, frozen: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """The scale of all keys, or all values, of an attention layer; called if `refuses_cache` had nothing to say."""
        raise NotImplementedError

    def start(self, plan: Plan, model: OpenModel, directory: Path) -> Exporter:
        return CheckpointExporter(self, plan, model, directory)


class CheckpointExporter:
    """Writes tensors into shards as layers arrive; for tensors that hold several layers, override `tensors` and `rest`.

    Attributes:
        plan, model: what is written.
    """

    def __init__(self, output_format: CheckpointFormat, plan: Plan, model: OpenModel, directory: Path) -> None:
        self._format, self.plan, self.model, self._directory = output_format, plan, model, directory
        self._shards = ShardWriter(directory)

    def tensors(self, result: LayerResult) -> Iterable[tuple[str, torch.Tensor]]:
        """What can be written now that one more layer is finished, by full name."""
        packed = self._format.pack(result)
        layer = result.layer.name if self._format.own_names else result.layer.stored_name
        return ((f"{layer}.{name}", tensor) for name, tensor in packed.items())

    def rest(self) -> Iterable[tuple[str, torch.Tensor]]:
        """What is left to write when all layers are finished, by full name."""
        quantized = {layer.name for layer in self.plan.quantized}
        return self.model.other_tensors(quantized, own_names=self._format.own_names)

    def add(self, result: LayerResult) -> None:
        for name, tensor in self.tensors(result):
            self._shards.add(name, tensor)

    def add_cache(self, result: CacheResult) -> None:
        cache, dtype = self.plan.cache, self.plan.quantized[0].dtype
        assert cache is not None
        for name, frozen in (("k_scale", result.key), ("v_scale", result.value)):
            self._shards.add(f"{result.module}.{name}", self._format.pack_cache(cache, frozen, dtype))

    def finish(self) -> None:
        for name, tensor in self.rest():
            self._shards.add(name, tensor)
        self._shards.close()
        self._write_config()
        self._write_other_files()

    def _write_config(self) -> None:
        source = self.model.directory
        if source is not None:
            config = json.loads((source / "config.json").read_text(encoding="utf-8"))
        else:
            config = self.model.model.config.to_dict()
            config.setdefault("architectures", [self.model.architecture])
        if any(layer.tied for layer in self.plan.quantized):
            config["tie_word_embeddings"] = False
        config.pop("quantization_config", None)  # of a model that was quantized when it came
        quantization = self._format.quantization_config(self.plan)
        if quantization is not None:
            config["quantization_config"] = quantization
        (self._directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def _write_other_files(self) -> None:
        """Tokenizer, chat template, generation settings: with files, every file that is neither weights nor config."""
        source = self.model.directory
        if source is None:
            if self.model.model.can_generate():
                self.model.model.generation_config.save_pretrained(self._directory)
            if self.model.tokenizer is not None:
                self.model.tokenizer.save_pretrained(self._directory)
            return
        for file in sorted(source.iterdir()):
            weights = file.suffix in _WEIGHTS or file.name.endswith(".index.json")
            if file.is_file() and not weights and file.name != "config.json" and not file.name.startswith("."):
                shutil.copyfile(file, self._directory / file.name)
