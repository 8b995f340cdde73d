# SPDX-License-Identifier: Apache-2.0
"""The plan: for every layer, how it will be quantized or why it is left alone. Made before any long work starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from auto_round.data_type import DataType
    from auto_round.schemes import QuantizationScheme

__all__ = ["LayerSpec", "Plan"]


@dataclass(frozen=True)
class LayerSpec:
    """One linear layer of the model and what happens to it.

    Attributes:
        name: its module's name.
        shape: (out_features, in_features).
        dtype: dtype of the stored weight.
        block: name of the block it lies in, None outside of all blocks.
        transposed: whether the module keeps its weight as [in_features, out_features].
        scheme: how it is quantized, every field filled in.
        data_type: the data type that does it, None if the layer is left alone.
        reason: why it is left alone, "" if it is not.
    """

    name: str
    shape: tuple[int, int]
    dtype: torch.dtype
    block: str | None
    transposed: bool
    scheme: QuantizationScheme
    data_type: DataType | None = field(default=None, compare=False)
    reason: str = ""

    @property
    def quantized(self) -> bool:
        """Whether the weight changes."""
        return self.data_type is not None


@dataclass(frozen=True)
class Plan:
    """What will be done to a model.

    Attributes:
        model: path or hub id, as given.
        architecture: class name of the model.
        scheme_name: the scheme as the user named it.
        scheme: the scheme most layers have, overrides included.
        layers: every linear layer in the order of the model.
        blocks: names of the blocks in the order they run.
        model_bytes: bytes of all tensors of the model as stored.
        notes: what the user should know and need not mend.
    """

    model: str
    architecture: str
    scheme_name: str
    scheme: QuantizationScheme
    layers: tuple[LayerSpec, ...]
    blocks: tuple[str, ...]
    model_bytes: int
    notes: tuple[str, ...] = ()

    @property
    def quantized(self) -> tuple[LayerSpec, ...]:
        """The layers whose weights change."""
        return tuple(layer for layer in self.layers if layer.quantized)
