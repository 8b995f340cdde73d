# SPDX-License-Identifier: Apache-2.0
"""The exporter of GGUF files: finished layers as they come, everything else at the end."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import torch

from auto_round.errors import OutputError
from auto_round_gguf.architectures import Architecture
from auto_round_gguf.block import BlockDataType
from auto_round_gguf.general import write_general
from auto_round_gguf.imatrix import write_imatrix
from auto_round_gguf.importance import LayerImportance, importance_file
from auto_round_gguf.metadata import computed_tensors, write_hyperparameters
from auto_round_gguf.mixtures import Preset, Shape, fitting, tensor_type
from auto_round_gguf.names import map_name, split_expert, tensor_name
from auto_round_gguf.schemes import LayerScheme
from auto_round_gguf.settings import imatrix_to_write
from auto_round_gguf.spool import Spool
from auto_round_gguf.tensors import CHANGES, code_bytes, plain_type, quantized_rows
from auto_round_gguf.types import BlockType
from auto_round_gguf.vocabulary import read_vocabulary, write_vocabulary

if TYPE_CHECKING:
    from auto_round.model.opened import OpenModel
    from auto_round.plan import Plan
    from auto_round.tuning.result import CacheResult, LayerResult

__all__ = ["GGUFExporter"]

FUSED_GATE_UP = re.compile(r"^(?P<stem>.*\.experts)\.gate_up_proj$")


class GGUFExporter:
    """Writes one model into one file, or several where they are cut."""

    def __init__(
        self,
        plan: Plan,
        model: OpenModel,
        architecture: Architecture,
        preset: Preset,
        path: Path,
        shard_bytes: int,
    ) -> None:
        self._plan, self._model, self._architecture, self._preset = plan, model, architecture, preset
        self._config: Any = model.model.config
        self._blocks = len(plan.blocks)
        self._shape = Shape.of(self._config.to_dict(), self._blocks)
        self._tied = bool(getattr(self._config, "tie_word_embeddings", False)) and not any(
            layer.tied for layer in plan.quantized
        )
        # What was asked to stay as it is; other layers outside the blocks get their preset's type.
        self._plain = {
            tensor_name(self._config.to_dict(), layer.name, self._blocks)
            for layer in plan.layers
            if not layer.scheme.quantizes_weights
        }
        self._importance: list[tuple[LayerImportance, LayerResult]] = []
        self._vocabulary = read_vocabulary(_tokenizer(model), model.model.get_input_embeddings().weight.shape[0])
        self._writer = gguf.GGUFWriter(path, architecture.name, split_max_size=shard_bytes)
        self._spool = Spool(path.with_suffix(".waiting"))

    def add(self, result: LayerResult) -> None:
        assert isinstance(result.layer.data_type, BlockDataType)
        assert result.codes is not None
        scheme = result.layer.scheme
        if isinstance(scheme, LayerScheme) and scheme.importance is not None:
            # Not the tensors: what was observed is small, and a model's weights are not.
            self._importance.append(
                (scheme.importance, dataclasses.replace(result, codes=None, decoded=torch.empty(0)))
            )
        kind = result.layer.data_type.block_type(scheme.bits)
        self._add_blocks(f"{result.layer.name}.weight", result.layer.shape, kind, code_bytes(result.codes, kind))

    def add_cache(self, result: CacheResult) -> None:
        raise OutputError("GGUF has no place for scales of keys and values.")

    def finish(self) -> None:
        transposed = {f"{layer.name}.weight" for layer in self._plan.layers if layer.transposed}
        for name, tensor in self._model.other_tensors({layer.name for layer in self._plan.quantized}):
            self._add_other(name, tensor.T if name in transposed else tensor)
        for name, tensor in computed_tensors(self._architecture, self._config).items():
            self._spool.add(name, *_plain(tensor))
        self._write_metadata()
        self._spool.write(self._writer)
        self._writer.close()
        path = imatrix_to_write()
        if path is not None:
            write_imatrix(path, importance_file(self._importance, self._shape.experts))

    def _add_blocks(self, name: str, shape: tuple[int, int], kind: BlockType, rows: torch.Tensor) -> None:
        """One matrix of blocks, uint8 [out_features, bytes of a row]."""
        name, part = split_expert(name)
        mapped = self._map(name)
        whole = shape if part is None else (self._shape.experts, *shape)
        self._spool.add(mapped, kind.ggml, whole, self._changed(mapped, rows), part or 0)

    def _add_other(self, name: str, tensor: torch.Tensor) -> None:
        """A tensor that was not in the plan: small ones as they are, embeddings and experts in blocks."""
        if name.endswith(self._architecture.dropped):
            return
        fused = FUSED_GATE_UP.match(name)
        if fused:
            for half, rows in zip(("gate_proj", "up_proj"), tensor.chunk(2, 1), strict=True):
                self._add_other(f"{fused['stem']}.{half}", rows)
            return
        name, part = split_expert(name)
        mapped = self._map(name if name.endswith((".weight", ".bias")) else f"{name}.weight")
        if mapped == "output.weight" and self._tied:
            return
        kind = self._kind(mapped, tensor)
        if kind is None:
            number, tensor = plain_type(self._changed(mapped, tensor))
            if mapped.endswith(("position_embd.weight", "ffn_gate_inp.weight")):
                number, tensor = plain_type(tensor.float())
            whole = tuple(tensor.shape) if part is None else (self._shape.experts, *tensor.shape)
            self._spool.add(mapped, number, whole, tensor, part or 0)
            return
        whole = tuple(tensor.shape) if part is None else (self._shape.experts, *tensor.shape)
        for rows in quantized_rows(tensor.reshape(-1, tensor.shape[-1]), kind):
            self._spool.add(mapped, kind.ggml, whole, rows, part or 0)

    def _kind(self, mapped: str, tensor: torch.Tensor) -> BlockType | None:
        """The block type of a tensor that nobody planned: embeddings, the output, experts; None for all others."""
        stem = mapped.removesuffix(".weight")
        if stem not in ("token_embd", "output") and not stem.endswith("_exps"):
            return None
        if stem in self._plain:
            return None
        return fitting(tensor_type(self._preset, stem, self._shape, tied=self._tied), tensor.shape[-1])

    def _map(self, name: str) -> str:
        mapped = map_name(self._architecture.name, name, self._blocks)
        if mapped is None:
            raise OutputError(
                f"llama.cpp has no place for tensor {name} in a model of architecture {self._architecture.name}."
            )
        return mapped

    def _changed(self, mapped: str, rows: torch.Tensor) -> torch.Tensor:
        stem, suffix = mapped.split(".")[-2:]
        changes = self._architecture.changes
        change = changes.get(stem) or changes.get(f"{stem}.{suffix}")
        return rows if change is None else CHANGES[change](rows, self._config)

    def _write_metadata(self) -> None:
        writer = self._writer
        write_general(writer, self._plan, self._model, self._preset, [known for known, _ in self._importance])
        write_hyperparameters(writer, self._architecture, self._config)
        writer.add_vocab_size(self._model.model.get_input_embeddings().weight.shape[0])
        write_vocabulary(writer, self._vocabulary)


def _plain(tensor: torch.Tensor) -> tuple[int, tuple[int, ...], torch.Tensor]:
    number, tensor = plain_type(tensor)
    return number, tuple(tensor.shape), tensor


def _tokenizer(model: OpenModel) -> Any:
    """The model's tokenizer; None for a model object that came without."""
    if model.tokenizer is None and model.directory is None:
        return None
    if model.directory is not None and not any(model.directory.glob("tokenizer*")):
        return None
    return model.require_tokenizer()
