"""How acme_nf4 lies in a file of format `auto_round`: two codes in a byte, the even one low, scales as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from auto_round.data_type import Codes
from auto_round.data_type.grouping import group_count
from auto_round.export.packing import Packing, TensorLayout

from autoround_acme_nf4.acme_nf4 import SCALE_BLOCK

if TYPE_CHECKING:
    from auto_round.schemes import QuantizationScheme


class AcmeNf4Packing(Packing):
    """`weight_nf4`, uint8 [ceil(weights / 2)], the codes row by row, and the three tensors of the scales."""

    name = "auto_round:acme_nf4"
    format = "auto_round"

    def refuses(self, data_type: str, scheme: QuantizationScheme, shape: tuple[int, int]) -> str | None:
        return None if data_type == "acme_nf4" else f"{self.name} stores acme_nf4, not {data_type}"

    def layout(self, scheme: QuantizationScheme, shape: tuple[int, int]) -> Mapping[str, TensorLayout]:
        groups = group_count(shape, scheme.group_size)[0]
        return {
            "weight_nf4": ((-(-shape[0] * shape[1] // 2),), torch.uint8),
            "scale_codes": ((shape[0], groups // shape[0]), torch.int8),
            "scale_steps": ((-(-groups // SCALE_BLOCK),), torch.float32),
            "scale_mean": ((1,), torch.float32),
        }

    def pack(self, codes: Codes) -> Mapping[str, torch.Tensor]:
        flat = codes.tensors["codes"].flatten()
        pairs = F.pad(flat, (0, len(flat) % 2)).reshape(-1, 2)
        scales = {name: tensor for name, tensor in codes.tensors.items() if name != "codes"}
        return {"weight_nf4": pairs[:, 0] | pairs[:, 1] << 4, **scales}

    def unpack(
        self,
        tensors: Mapping[str, torch.Tensor],
        data_type: str,
        scheme: QuantizationScheme,
        shape: tuple[int, int],
        dtype: torch.dtype,
    ) -> Codes:
        packed = tensors["weight_nf4"]
        flat = torch.stack([packed & 15, packed >> 4], -1).flatten()[: shape[0] * shape[1]]
        scales = {name: tensor for name, tensor in tensors.items() if name != "weight_nf4"}
        return Codes(data_type, scheme, shape, dtype, {"codes": flat.reshape(shape), **scales})
