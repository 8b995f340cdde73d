# SPDX-License-Identifier: Apache-2.0
"""The stored form of one quantized weight, the thing that flows from the tuner to exporters and back from a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from auto_round.schemes import QuantizationScheme

__all__ = ["Codes"]


@dataclass(frozen=True)
class Codes:
    """What a data type stores for one weight, as named tensors.

    Attributes:
        data_type: registered name of the data type that made and reads these tensors.
        scheme: the scheme they were made under.
        shape: (out_features, in_features) of the weight.
        dtype: dtype of the weight that `DataType.decode` returns.
        tensors: integer codes, scales, zero points: whatever the data type names. Names that begin with `input_` are
            what static activations of the layer were frozen to, see `DataType.freeze`; `encode` and `decode` leave
            them alone.
    """

    data_type: str
    scheme: QuantizationScheme
    shape: tuple[int, int]
    dtype: torch.dtype
    tensors: Mapping[str, torch.Tensor]

    def to(self, device: torch.device | str) -> Codes:
        """The same codes on another device."""
        moved = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return Codes(self.data_type, self.scheme, self.shape, self.dtype, moved)

    @property
    def nbytes(self) -> int:
        """Bytes these tensors take in memory; a packed file takes fewer."""
        return sum(t.nbytes for t in self.tensors.values())
