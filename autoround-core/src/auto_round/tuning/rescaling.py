# SPDX-License-Identifier: Apache-2.0
"""Channels scaled where one module writes them and linear layers read them, with no change to what is computed.

Row i of the writer is divided by a power of two, and column i of every reader multiplied by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

__all__ = [
    "Rescaling", "columns_first", "columns_of", "copies_of", "dims_of", "put_back", "rescale", "rows_of", "scale_rows",
]  # fmt: skip


@dataclass(frozen=True)
class Rescaling:
    """One place where channels can be scaled.

    Attributes:
        writer: name of the module whose rows make the channels: a gain, with or without bias, or a linear layer.
        readers: for each linear layer that reads them the row behind each of its columns, int64 [in_features].
    """

    writer: str
    readers: Mapping[str, torch.Tensor]


@torch.no_grad()
def rescale(block: nn.Module, place: Rescaling, exponents: torch.Tensor) -> None:
    """Multiply columns of the readers by powers of two, and divide the rows of the writer by them, in place.

    Nothing is lost: a power of two changes no digit of a binary float that is neither tiny nor huge.

    Args:
        exponents: of each row of the writer, whole numbers, float32 [rows].
    """
    writer: Any = block.get_submodule(place.writer)
    scale_rows(writer, torch.exp2(-exponents))
    for name, rows in place.readers.items():
        weight: torch.Tensor = block.get_submodule(name).weight  # type: ignore[assignment]
        factors = torch.exp2(exponents[rows]).to(weight.device, weight.dtype)
        weight.mul_(factors[:, None] if _turned(block.get_submodule(name)) else factors)


def dims_of(module: nn.Module) -> int:
    """Dimensions of a module's own weight, 0 where it has none."""
    weight = module._parameters.get("weight")  # noqa: SLF001 - its own, not what a subclass computes
    return 0 if weight is None else weight.dim()


def _turned(module: nn.Module) -> bool:
    return isinstance(module, Conv1D)


def rows_of(module: Any) -> int:
    """How many channels a module writes."""
    return int(module.weight.shape[1 if _turned(module) else 0])


def columns_of(module: Any) -> int:
    """How many channels a linear layer reads."""
    return int(module.weight.shape[0 if _turned(module) else 1])


def columns_first(module: Any) -> torch.Tensor:
    """The weight of a linear layer as [in_features, out_features], a view."""
    weight: torch.Tensor = module.weight.detach()
    return weight if _turned(module) else weight.T


def scale_rows(module: Any, factors: torch.Tensor) -> None:
    """Multiply what a module answers by factors [rows], bias included, in place."""
    for parameter in (module.weight, getattr(module, "bias", None)):
        if parameter is not None:
            by_row = factors.to(parameter.device, parameter.dtype)
            parameter.mul_(by_row[:, None] if parameter.dim() == 2 and not _turned(module) else by_row)


def copies_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """A module's own parameters, to be put back."""
    return {name: p.detach().clone() for name, p in module.named_parameters(recurse=False)}


def put_back(module: nn.Module, copies: Mapping[str, torch.Tensor]) -> None:
    """Undo whatever happened to a module's own parameters since, in place."""
    for name, parameter in module.named_parameters(recurse=False):
        parameter.copy_(copies[name])
