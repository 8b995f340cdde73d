# SPDX-License-Identifier: Apache-2.0
"""A linear layer as it lies in a checkpoint, computing with exactly the weight that was tuned."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from auto_round.data_type import Codes, DataType, Kernel
from auto_round.data_type.activation import ActivationQuantizer, frozen_offers
from auto_round.export.packing import Packing
from auto_round.schemes import QuantizationScheme

__all__ = ["BACKENDS", "PackedLinear"]

BACKENDS = {
    "auto": "decode each weight once and keep it: exact, and as fast as the model before it was quantized",
    "low_memory": "decode each weight at every call and keep nothing: exact, slow, memory of the packed weights alone",
    "kernel": "compute with packed weights where the data type has a kernel for the device, else as low_memory: "
    "fast for few tokens at a time, exact but for the kernel's own rounding",
}
"""Ways to compute, and what each is good for."""


class PackedLinear(nn.Module):
    """Holds the packed tensors as buffers, so that loading fills them and saving writes them back unchanged.

    Decoding goes through the data type's own `decode`; when it happens and what is kept is told by the backend, one of
    `BACKENDS`.
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
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.backend = backend
        self._kernel: Kernel | None = None
        self._kernel_of: tuple[torch.dtype, torch.device] | None = None
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
        self.register_load_state_dict_post_hook(_forget)

    bias: torch.Tensor | None

    @property
    def weight(self) -> torch.Tensor:
        """The decoded weight, [out_features, in_features], for code that reads it; writing has no effect."""
        weight = self._weight(self.dtype, self.stored(self._names[0]).device)
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
        return self.data_type.decode(self._codes(dtype))

    def _codes(self, dtype: torch.dtype) -> Codes:
        packed = {name: self.stored(name) for name in self._names}
        shape = (self.out_features, self.in_features)
        codes = self.packing.unpack(packed, self.data_type.name, self.scheme, shape, dtype)
        if self.activation is not None and self.scheme.act_dynamic is False:
            self.activation.frozen = frozen_offers(codes.tensors)
        return codes

    def stored(self, name: str) -> torch.Tensor:
        """A packed tensor as it lies in the checkpoint; one may be called `weight`, unlike the decoded one."""
        tensor = self._buffers[name]
        assert tensor is not None
        return tensor

    def forget(self) -> None:
        """Decode anew at the next use: the packed tensors have changed."""
        self._decoded = self._kernel = self._kernel_of = None

    @torch.no_grad()
    def _fitting_kernel(self, x: torch.Tensor) -> Kernel | None:
        """The data type's kernel for an input, if it has one and is asked for."""
        if self.backend != "kernel":
            return None
        if self._kernel_of != (x.dtype, x.device):
            self._kernel_of = (x.dtype, x.device)
            self._kernel = self.data_type.kernel(self._codes(x.dtype))
        rows = x.numel() // self.in_features
        return self._kernel if self._kernel is not None and rows <= self._kernel.most_rows else None

    def _weight(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        if self.backend != "auto":
            return self.decode(dtype)
        kept = self._decoded
        if kept is None or kept.device != device or kept.dtype != dtype:
            self._decoded = kept = self.decode(dtype)
        return kept

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel = self._fitting_kernel(x)
        # Before the activations are quantized: static ones learn their scale from the codes.
        weight = self._weight(x.dtype, x.device) if kernel is None else None
        if self.activation is not None:
            x = self.activation(x)
        if kernel is None:
            assert weight is not None
            return F.linear(x, weight, self.bias)
        y = kernel(x.reshape(-1, self.in_features)).reshape(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"data_type={self.data_type.name}, packing={self.packing.name}"
        )


def _forget(module: PackedLinear, _: object) -> None:
    module.forget()
