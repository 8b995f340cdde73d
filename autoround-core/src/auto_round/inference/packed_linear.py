# SPDX-License-Identifier: Apache-2.0
"""A linear layer as it lies in a checkpoint, computing with exactly the weight that was tuned."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from auto_round.data_type import DataType
from auto_round.data_type.activation import ActivationQuantizer, frozen_offers
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
        activation: DataType | None = None,
    ) -> None:
        super().__init__()
        self.activation = None if activation is None else ActivationQuantizer(activation, scheme)
        self.in_features, self.out_features = in_features, out_features
        self.data_type, self.packing, self.scheme, self.dtype = data_type, packing, scheme, dtype
        self._names = []
        for name, (shape, tensor_dtype) in packing.layout(scheme, (out_features, in_features)).items():
            # Not by `register_buffer`, which refuses a tensor called `weight` because of the property below.
            self._buffers[name] = torch.empty(shape, dtype=tensor_dtype)
            self._names.append(name)
        self.register_buffer("bias", torch.empty(out_features, dtype=dtype) if bias else None)
        self._decoded: torch.Tensor | None = None
        self.register_load_state_dict_post_hook(lambda module, _: module.forget())

    bias: torch.Tensor | None

    @property
    def weight(self) -> torch.Tensor:
        """The decoded weight, [out_features, in_features], for code that reads it; writing has no effect."""
        weight = self._weight(self.dtype, self._stored(self._names[0]).device)
        # Models that initialize their layers' weights by name while they load must leave this one as it is.
        weight._is_hf_initialized = True  # type: ignore[attr-defined]  # noqa: SLF001 - transformers' own mark
        return weight

    @property
    def stored_names(self) -> tuple[str, ...]:
        """Names of the packed tensors, below the layer's own."""
        return tuple(self._names)

    @torch.no_grad()
    def decode(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight, [out_features, in_features], in the given dtype."""
        packed = {name: self._stored(name) for name in self._names}
        shape = (self.out_features, self.in_features)
        codes = self.packing.unpack(packed, self.data_type.name, self.scheme, shape, dtype)
        if self.activation is not None and self.scheme.act_dynamic is False:
            self.activation.frozen = frozen_offers(codes.tensors)
        return self.data_type.decode(codes)

    def _stored(self, name: str) -> torch.Tensor:
        """A packed tensor as it lies in the checkpoint; one may be called `weight`, unlike the decoded one."""
        tensor = self._buffers[name]
        assert tensor is not None
        return tensor

    def forget(self) -> None:
        """Decode anew at the next use: the packed tensors have changed."""
        self._decoded = None

    def _weight(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        kept = self._decoded
        if kept is None or kept.device != device or kept.dtype != dtype:
            self._decoded = kept = self.decode(dtype)
        return kept

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self._weight(x.dtype, x.device)
        return F.linear(x if self.activation is None else self.activation(x), weight, self.bias)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"data_type={self.data_type.name}, packing={self.packing.name}"
        )
