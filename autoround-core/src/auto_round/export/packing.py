# SPDX-License-Identifier: Apache-2.0
"""A packing: how the codes of one data type lie on disk inside a container that belongs to somebody else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from auto_round.data_type import Codes, DataType
    from auto_round.schemes import QuantizationScheme

__all__ = ["Packing", "TensorLayout"]

TensorLayout = tuple[tuple[int, ...], "torch.dtype"]
"""Shape and dtype of one stored tensor."""


class Packing(ABC):
    """Codes to stored tensors and back, exactly.

    Attributes:
        name: what files record, e.g. as `packing_format`; a wire format, its bytes never change.
        format: name of the container.
        aliases: other names under which existing files record the same bytes.
        recorded_as: which of the aliases new files record instead of the name, where readers know only that one.
    """

    name: str
    format: str
    aliases: tuple[str, ...] = ()
    recorded_as: str | None = None

    @abstractmethod
    def refuses(self, data_type: str, scheme: QuantizationScheme, shape: tuple[int, int]) -> str | None:
        """Why a weight (out_features, in_features) of this data type cannot be stored so, or None if it can.

        Args:
            data_type: registered name of the layer's data type.
        """

    def scale_dtype(self, weight_dtype: torch.dtype) -> torch.dtype | None:
        """The dtype scales are stored in for a weight of that dtype; None where the data type alone decides."""
        return None

    def bits_per_weight(self, data_type: DataType, scheme: QuantizationScheme, shape: tuple[int, int]) -> float:
        """Bits that a weight takes so on average, scales and zero points included."""
        return data_type.bits_per_weight(scheme, shape)

    def describe(self, data_type: str, scheme: QuantizationScheme) -> Mapping[str, Any]:
        """What the container's config says of layers packed so, in the container's own words; {} if nothing.

        For `llm_compressor`: `format`, `weights` and, for quantized activations, `input_activations`, each as a config
        group of compressed-tensors has them.
        """
        return {}

    def describe_cache(self, data_type: str, scheme: QuantizationScheme) -> Mapping[str, Any]:
        """What the container's config says of keys and values kept in this data type; {} if this packing has no say.

        Args:
            data_type: what fixes their scales.
            scheme: its `act_*` fields are the ones that matter.
        """
        return {}

    def pack_cache(self, frozen: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """The scale of all keys, or of all values, as the container stores it.

        Args:
            frozen: what the data type's `freeze` returned.
            dtype: of the model.
        """
        raise NotImplementedError

    @abstractmethod
    def layout(self, scheme: QuantizationScheme, shape: tuple[int, int]) -> Mapping[str, TensorLayout]:
        """What `pack` returns, described: tensor name (below the layer's own) to shape and dtype."""

    @abstractmethod
    def pack(self, codes: Codes) -> Mapping[str, torch.Tensor]:
        """Tensors to store, by name below the layer's own."""

    @abstractmethod
    def unpack(
        self,
        tensors: Mapping[str, torch.Tensor],
        data_type: str,
        scheme: QuantizationScheme,
        shape: tuple[int, int],
        dtype: torch.dtype,
    ) -> Codes:
        """The codes `pack` was given; `dtype` becomes that of the decoded weight."""
