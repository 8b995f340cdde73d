# SPDX-License-Identifier: Apache-2.0
"""MXFP4 weights of fused experts in the layout of gpt-oss checkpoints, quant_method `mxfp4` of transformers.

| tensor | shape | holds |
|---|---|---|
| NAME_blocks | uint8 [experts, out_features, in_features / 32, 16] | codes e2m1, the even element in the low nibble |
| NAME_scales | uint8 [experts, out_features, in_features / 32] | E8M0: the shared exponent plus 127 |

One block is 32 consecutive inputs of one output. transformers' own parameter is [experts, in_features, out_features]:
a weight has to be transposed before it is quantized, and comes back transposed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from auto_round.data_type import Codes
from auto_round.errors import ContractError
from auto_round_mxfp.bits import pack_codes, unpack_codes
from auto_round_mxfp.elements import E2M1
from auto_round_mxfp.names import element_of
from auto_round_mxfp.packing import BLOCK

if TYPE_CHECKING:
    from auto_round.schemes import QuantizationScheme

__all__ = ["pack_experts", "unpack_experts"]


def pack_experts(experts: Sequence[Codes]) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of each expert's weight [out_features, in_features] to `NAME_blocks` and `NAME_scales`.

    Raises:
        ContractError: no experts, shapes that differ, or codes that this layout does not hold.
    """
    if not experts or any(codes.shape != experts[0].shape for codes in experts):
        raise ContractError("fused experts need at least one weight, and all of one shape.")
    rows, cols = experts[0].shape
    for codes in experts:
        scheme = codes.scheme
        if element_of(codes.data_type, scheme.bits) is not E2M1 or scheme.group_size != BLOCK or cols % BLOCK:
            raise ContractError(
                f"fused experts are stored as e2m1 in whole blocks of {BLOCK}, not {codes.data_type} with group_size "
                f"{scheme.group_size} and in_features {cols}."
            )
    packed = torch.stack([pack_codes(codes.tensors["codes"], E2M1.bits) for codes in experts])
    blocks = packed.reshape(len(experts), rows, cols // BLOCK, BLOCK // 2)
    return blocks, torch.stack([codes.tensors["scale"] for codes in experts])


def unpack_experts(
    blocks: torch.Tensor, scales: torch.Tensor, data_type: str, scheme: QuantizationScheme, dtype: torch.dtype
) -> list[Codes]:
    """Undo `pack_experts`; `dtype` becomes that of the decoded weights."""
    experts, rows, across, half = blocks.shape
    shape = (rows, across * half * 2)
    stored = unpack_codes(blocks.reshape(experts * rows, -1), E2M1.bits).reshape(experts, *shape)
    return [
        Codes(data_type, scheme, shape, dtype, {"codes": codes, "scale": scale})
        for codes, scale in zip(stored, scales, strict=True)
    ]
