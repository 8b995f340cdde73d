# SPDX-License-Identifier: Apache-2.0
"""The packing of data types that bring none: their code tensors as they are, under their own names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from auto_round.data_type import Codes, DataType
from auto_round.data_type.activation import INPUT_PREFIX
from auto_round.export.packing import Packing, TensorLayout
from auto_round.torch_defaults import ordinary_defaults

if TYPE_CHECKING:
    from auto_round.plugins import Registry
    from auto_round.schemes import QuantizationScheme

__all__ = ["NamedCodes"]

PREFIX = "codes_"
"""Keeps a code tensor from the names a plain layer uses: a data type may well call one of its tensors `weight`."""


ROWS = 256
"""Of so many rows a weight costs what it costs of more; a whole one would be encoded for the sake of its size."""


class NamedCodes(Packing):
    """Every data type with encode and decode fits."""

    name = "auto_round:codes"
    format = "auto_round"

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def refuses(self, data_type: str, scheme: QuantizationScheme, shape: tuple[int, int]) -> str | None:
        # By the scheme, which says whose it is where two plugins claim the name.
        if self._registry.data_type_for(scheme).encodes:
            return None
        return f"data type {data_type} has no stored form; only format fake can write it."

    def layout(self, scheme: QuantizationScheme, shape: tuple[int, int]) -> Mapping[str, TensorLayout]:
        data_type = self._registry.data_type_for(scheme)
        with ordinary_defaults():
            weight = torch.ones(shape)
            tensors = dict(data_type.encode(weight, scheme, **data_type.share([weight], scheme)).tensors)
            if scheme.quantizes_activations and scheme.act_dynamic is False:
                activation = self._registry.data_type_for(scheme.for_activations())
                frozen = activation.freeze(torch.tensor(-1.0), torch.tensor(1.0), scheme)
                tensors |= {INPUT_PREFIX + name: tensor for name, tensor in frozen.items()}
        return {PREFIX + name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}

    def bits_per_weight(self, data_type: DataType, scheme: QuantizationScheme, shape: tuple[int, int]) -> float:
        # Codes are seldom packed here; what a data type says it costs is what it costs where somebody packs them.
        shape = (min(shape[0], ROWS), shape[1])
        held = self.layout(scheme, shape).values()
        return sum(math.prod(stored) * dtype.itemsize for stored, dtype in held) * 8 / math.prod(shape)

    def pack(self, codes: Codes) -> Mapping[str, torch.Tensor]:
        return {PREFIX + name: tensor for name, tensor in codes.tensors.items()}

    def unpack(
        self,
        tensors: Mapping[str, torch.Tensor],
        data_type: str,
        scheme: QuantizationScheme,
        shape: tuple[int, int],
        dtype: torch.dtype,
    ) -> Codes:
        named = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
        return Codes(data_type, scheme, shape, dtype, named)
