# SPDX-License-Identifier: Apache-2.0
"""The plan: for every layer, how it will be quantized or why it is left alone. `planning` makes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from auto_round.names import experts_above, prefix_change
from auto_round.schemes import QuantizationScheme

if TYPE_CHECKING:
    import torch

    from auto_round.data_type import DataType

__all__ = ["CachePlan", "KeptWeight", "LayerSpec", "Plan"]


@dataclass(frozen=True)
class LayerSpec:
    """One linear layer of the model and what happens to it.

    Attributes:
        name: its module's name.
        shape: (out_features, in_features).
        dtype: dtype of the stored weight.
        block: name of the block it lies in, None outside of all blocks.
        transposed: whether the module keeps its weight as [in_features, out_features].
        tied: whether the weight is also the input embedding; quantizing it unties the two.
        scheme: how it is quantized, every field filled in.
        data_type: the data type that does it, None if the layer is left alone.
        activation: the data type of its activations, None if they are left alone.
        shares: the layers that receive the same input, itself among them.
        scale_dtype: dtype in which its scales are stored; the same from the search to the file.
        reason: why it is left alone, "" if it is not.
        expert: whether it belongs to a routed expert.
        fused: whether files have it in one tensor with others.
        apart: whether transformers finds it all the same where other files have it alone.
        file_name: what files call it, or would if it lay there alone; None where that is its own name.
        stored_bits: bits that a weight of it takes in each of the formats it will be written in, scales included; ()
            where no format is named.
    """

    name: str
    shape: tuple[int, int]
    dtype: torch.dtype
    block: str | None
    transposed: bool
    tied: bool
    scheme: QuantizationScheme
    data_type: DataType | None = field(default=None, compare=False)
    activation: DataType | None = field(default=None, compare=False)
    shares: tuple[str, ...] = ()
    scale_dtype: torch.dtype | None = None
    reason: str = ""
    expert: bool = False
    fused: bool = False
    apart: bool = False
    file_name: str | None = None
    stored_bits: tuple[float, ...] = ()

    @property
    def stored_name(self) -> str:
        """What runtimes know it by that build their modules after the files."""
        return self.file_name or self.name

    @property
    def interleaved(self) -> bool:
        """Whether it is gate and up of an expert in one, which nobody reads who has experts one by one."""
        return self.fused and self.name.endswith(".gate_up_proj")

    @property
    def quantized(self) -> bool:
        """Whether the weight changes."""
        return self.data_type is not None

    @property
    def static_activations(self) -> bool:
        """Whether the scale of its activations is fixed at calibration."""
        return self.activation is not None and self.scheme.act_dynamic is False

    @property
    def bits_per_weight(self) -> float:
        """Bits a weight of this layer costs, scales included; the mean of the formats it is written in."""
        if self.data_type is None:
            return self.dtype.itemsize * 8.0
        if self.stored_bits:
            return sum(self.stored_bits) / len(self.stored_bits)
        return self.data_type.bits_per_weight(self.scheme, self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes the weight will take, each time it is written."""
        return round(self.bits_per_weight * self.shape[0] * self.shape[1] / 8)


@dataclass(frozen=True)
class KeptWeight:
    """A weight that is no linear layer's and stays as it is.

    Attributes:
        name: its module's name, or the parameter's own where a module has several.
        shape: as stored.
        nbytes: bytes it takes.
        reason: why it stays.
        linear: whether other libraries may have a linear layer there.
        file_name: as that of a `LayerSpec`.
    """

    name: str
    shape: tuple[int, ...]
    nbytes: int
    reason: str
    linear: bool = False
    file_name: str | None = None

    @property
    def stacked(self) -> bool:
        """Whether it is many matrices in one tensor."""
        return len(self.shape) > 2


@dataclass(frozen=True)
class CachePlan:
    """How the keys and values that attention keeps are to be stored by who runs the model.

    Attributes:
        data_type: what fixes their scales, as it does those of activations.
        scheme: its `act_*` fields say the rest: one scale for all keys of a layer, one for all values, both fixed.
    """

    data_type: DataType
    scheme: QuantizationScheme


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
        unused: names of matrices that the files have and the model's class does not use; they are written as they are.
        kept: embeddings, routers, and matrices that lie in one tensor with others, which stay as they are.
        notes: what the user should know and need not mend.
        cache: how keys and values are to be kept, None for as they are.
        config: the model's config object, for formats that ask what kind of model it is; None without one.
    """

    model: str
    architecture: str
    scheme_name: str
    scheme: QuantizationScheme
    layers: tuple[LayerSpec, ...]
    blocks: tuple[str, ...]
    model_bytes: int
    kept: tuple[KeptWeight, ...] = ()
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    cache: CachePlan | None = None
    config: Any = field(default=None, compare=False, repr=False)

    @property
    def quantized(self) -> tuple[LayerSpec, ...]:
        """The layers whose weights change."""
        return tuple(layer for layer in self.layers if layer.quantized)

    @property
    def left_alone(self) -> tuple[str, ...]:
        """Names of all that a loader may take for a linear layer and that stays as it is.

        Those of modules, and beside them those that files have where these are others: some loaders go by the one, some
        by the other. Experts that all are left alone are also named together.
        """
        left: list[LayerSpec | KeptWeight] = [layer for layer in self.layers if not layer.quantized]
        left += [kept for kept in self.kept if kept.linear]
        names = [name for one in left for name in (one.name, one.file_name) if name]
        experts = {
            experts_above(name) for layer in self.layers if layer.expert for name in (layer.name, layer.stored_name)
        }
        experts -= {experts_above(name) for layer in self.quantized for name in (layer.name, layer.stored_name)}
        experts |= {kept.name.rpartition(".")[0] for kept in self.kept if kept.stacked}
        return tuple(dict.fromkeys([*names, *sorted(experts), *self.unused]))

    @property
    def block_list(self) -> str:
        """Name of the module list the blocks are in."""
        return self.blocks[0].rpartition(".")[0]

    @property
    def block_lists(self) -> tuple[str, ...]:
        """Name of that list, and what files call it where that is something else."""
        before, instead = prefix_change({layer.name: layer.stored_name for layer in self.layers if not layer.expert})
        return tuple(dict.fromkeys((self.block_list, instead + f"{self.block_list}.".removeprefix(before).rstrip("."))))

    @property
    def left_in_blocks(self) -> tuple[str, ...]:
        """Those of `left_alone` that lie in blocks, for loaders that take everything there for quantized."""
        inside = tuple(f"{name}." for name in self.block_lists)
        return tuple(name for name in self.left_alone if name.startswith(inside))

    @property
    def output_bytes(self) -> int:
        """Bytes the model will take, in all formats together."""
        copies = max([1, *(len(layer.stored_bits) for layer in self.quantized)])
        saved = sum(
            (0 if layer.tied else layer.shape[0] * layer.shape[1] * layer.dtype.itemsize) - layer.nbytes
            for layer in self.quantized
        )  # the embedding of a tied one stays
        return copies * (self.model_bytes - saved)

    @property
    def bits_per_weight(self) -> float:
        """Average bits of a quantized weight, scales included."""
        count = sum(layer.shape[0] * layer.shape[1] for layer in self.quantized)
        return 8 * sum(layer.nbytes for layer in self.quantized) / count if count else 0.0
