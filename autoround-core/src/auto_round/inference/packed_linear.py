# SPDX-License-Identifier: Apache-2.0
"""A linear layer as it lies in a checkpoint, computing with exactly the weight that was tuned."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from auto_round.data_type import DataType
from auto_round.export.packing import Packing
from auto_round.schemes import QuantizationScheme

__all__ = ["PackedLinear"]


class PackedLinear(nn.Module):
    """Holds the packed tensors as buffers, so that loading fills them and saving writes them back unchanged.

    The weight is decoded at the first call and kept; decoding goes through the data type's own `decode`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        data_type: DataType,
        packing: Packing,
        scheme: QuantizationScheme,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.data_type, self.packing, self.scheme = data_type, packing, scheme
        self._names = []
        for name, (shape, tensor_dtype) in packing.layout(scheme, (out_features, in_features)).items():
            self.register_buffer(name, torch.empty(shape, dtype=tensor_dtype))
            self._names.append(name)
        self.register_buffer("bias", torch.empty(out_features, dtype=dtype) if bias else None)
        self._weight: torch.Tensor | None = None

    bias: torch.Tensor | None

    @torch.no_grad()
    def decode(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight, [out_features, in_features], in the given dtype."""
        packed = {name: self.get_buffer(name) for name in self._names}
        shape = (self.out_features, self.in_features)
        codes = self.packing.unpack(packed, self.data_type.name, self.scheme, shape, dtype)
        return self.data_type.decode(codes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self._weight
        if weight is None or weight.device != x.device or weight.dtype != x.dtype:
            self._weight = weight = self.decode(x.dtype)
        return F.linear(x, weight, self.bias)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"data_type={self.data_type.name}, packing={self.packing.name}"
        )
