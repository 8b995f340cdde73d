# SPDX-License-Identifier: Apache-2.0
"""The parts of a decoder that matter here, found by what they are and not by what they are called."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from auto_round.errors import ModelError
from auto_round.model.plain import computes_as_linear

__all__ = ["LinearInfo", "Structure", "find_structure", "without_numbers"]


@dataclass(frozen=True)
class LinearInfo:
    """A linear layer.

    Attributes:
        name: its module's name.
        shape: (out_features, in_features).
        transposed: whether its weight is kept as [in_features, out_features].
        block: name of the block it lies in, or None.
        tied: whether its weight is also the input embedding.
        head: whether it is the model's output layer.
        own_forward: name of its class, if that computes something else than a linear layer does.
    """

    name: str
    shape: tuple[int, int]
    transposed: bool
    block: str | None
    tied: bool
    head: bool
    own_forward: str | None = None


@dataclass(frozen=True)
class Structure:
    """Attributes:
    blocks: names of the repeated blocks, in the order they run.
    linears: every linear layer, in the order of the model.
    embeddings: name and shape of every embedding, [rows, features].
    matrices: name and shape of what else has a matrix as its weight, as routers of experts have.
    stacks: name and shape of parameters that are many matrices, which nothing here takes apart.
    """

    blocks: tuple[str, ...]
    linears: tuple[LinearInfo, ...]
    embeddings: tuple[tuple[str, tuple[int, int]], ...] = ()
    matrices: tuple[tuple[str, tuple[int, int]], ...] = ()
    stacks: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @property
    def block_list(self) -> str:
        """Name of the module list the blocks are in."""
        return self.blocks[0].rpartition(".")[0]


def find_structure(model: nn.Module) -> Structure:
    """Find the repeated blocks and the linear layers of a model; weights may be on the meta device.

    The blocks are the items of the outermost module list with the most parameters.

    Raises:
        ModelError: no list of blocks with linear layers in it.
    """
    candidates = [(name, module) for name, module in _outermost_lists(model) if any(_linears(module))]
    if not candidates:
        raise ModelError(
            f"{type(model).__name__} has no list of repeated blocks with linear layers in them, "
            "so it is not a decoder that can be quantized block by block."
        )
    list_name, block_list = max(candidates, key=lambda item: sum(p.numel() for p in item[1].parameters()))
    blocks = tuple(f"{list_name}.{index}" for index in range(len(block_list)))
    embeddings = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Embedding)]
    shapes = tuple((name, (m.num_embeddings, m.embedding_dim)) for name, m in embeddings)
    return Structure(blocks, tuple(_describe(model, blocks)), shapes, tuple(_matrices(model)), tuple(_stacks(model)))


def _outermost_lists(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.ModuleList]]:
    for name, child in module.named_children():
        path = f"{prefix}.{name}" if prefix else name
        if isinstance(child, nn.ModuleList):
            yield path, child
        else:
            yield from _outermost_lists(child, path)


def _linears(module: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((name, m) for name, m in module.named_modules() if isinstance(m, nn.Linear | Conv1D))


def _matrices(model: nn.Module) -> Iterator[tuple[str, tuple[int, int]]]:
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")  # noqa: SLF001 - `weight` may be computed from others
        if weight is not None and weight.dim() == 2 and not isinstance(module, nn.Linear | Conv1D | nn.Embedding):
            yield name, (weight.shape[0], weight.shape[1])


def _stacks(model: nn.Module) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            for inner, parameter in module.named_parameters(recurse=False):
                if parameter.dim() > 2 and min(parameter.shape[-2:]) > 1:
                    yield f"{name}.{inner}", tuple(parameter.shape)


def _describe(model: nn.Module, blocks: tuple[str, ...]) -> Iterator[LinearInfo]:
    tied_to = _embedding_ties(model)
    head = _head(model)
    for name, module in _linears(model):
        rows, cols = module.weight.shape
        transposed = isinstance(module, Conv1D)
        shape = (cols, rows) if transposed else (rows, cols)
        block = next((b for b in blocks if name.startswith(b + ".")), None)
        own_forward = None if computes_as_linear(module) else type(module).__name__
        yield LinearInfo(name, shape, transposed, block, name in tied_to, module is head, own_forward)


def _head(model: nn.Module) -> Any:
    return getattr(model, "get_output_embeddings", lambda: None)()


def _embedding_ties(model: nn.Module) -> set[str]:
    """Names of linear layers whose weight is an embedding's, whether already tied or only declared to be."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    tied = {name for name, m in _linears(model) if id(m.weight) in embeddings}
    config = getattr(model, "config", None)
    head = _head(model)
    if head is not None and getattr(config, "tie_word_embeddings", False):
        tied |= {name for name, m in _linears(model) if m is head}
    return tied


def without_numbers(name: str) -> str:
    """The name with every number out of it: `experts.3.up` and `experts.7.up` are one."""
    return ".".join("#" if part.isdigit() else part for part in name.split("."))
