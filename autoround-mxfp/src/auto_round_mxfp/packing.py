# SPDX-License-Identifier: Apache-2.0
"""Microscaling weights inside the `auto_round` container.

| tensor | shape | holds |
|---|---|---|
| weight_packed | uint8 [out_features, in_features * b / 8] | codes of less than 8 bits, a stream along each row |
| weight | e4m3, e5m2 or int8 [out_features, in_features] | elements of 8 bits, in the dtype that reads them |
| weight_scale | uint8 [out_features, in_features / 32] | E8M0: the shared exponent plus 127 |

Floating point codes are sign and magnitude; so are whole numbers of four bits (as in the files that exist), while those
of 8 and 2 bits are two's complement. Existing MXFP4 and MXFP8 files have the same tensors and call the layout
`auto_round:llm_compressor`, a name that they share with other families' layouts; the data type tells them apart. It is
the one that vLLM asks for, so floating point elements are recorded under it here, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch

from auto_round.data_type import Codes
from auto_round.export.packing import Packing, TensorLayout
from auto_round_mxfp.bits import pack_codes, unpack_codes
from auto_round_mxfp.elements import E2M1, E2M3, E3M2, E4M3, E5M2, INT2, INT4, INT8, Element
from auto_round_mxfp.names import element_of

if TYPE_CHECKING:
    from auto_round.schemes import QuantizationScheme

__all__ = ["BLOCK", "MicroscalingPacking", "MxFp", "MxFp8E5M2", "MxInt"]

BLOCK = 32
"""Elements of a block in every file."""

DTYPES = {E4M3: torch.float8_e4m3fn, E5M2: torch.float8_e5m2, INT8: torch.int8}
"""Elements of 8 bits are stored in the dtype that reads their codes."""


class MicroscalingPacking(Packing):
    """What the layouts of microscaling weights have in common.

    Attributes:
        elements: the element formats it stores.
    """

    elements: ClassVar[tuple[Element, ...]]

    def refuses(self, data_type: str, scheme: QuantizationScheme, shape: tuple[int, int]) -> str | None:
        element = element_of(data_type, scheme.bits)
        if element not in self.elements:
            formats = " and ".join(e.name for e in self.elements)
            return f"{self.name} stores microscaling elements {formats}, not {data_type} with {scheme.bits} bits"
        if scheme.group_size != BLOCK:
            return f"{self.name} stores blocks of {BLOCK}, not of {scheme.group_size}"
        if shape[1] % BLOCK:
            return f"{self.name} needs in_features to be a multiple of {BLOCK}, not {shape[1]}"
        if scheme.quantizes_activations and scheme.act_dynamic is False:
            return f"{self.name} has no place for static activation scales; use act_dynamic=True"
        return None

    def layout(self, scheme: QuantizationScheme, shape: tuple[int, int]) -> Mapping[str, TensorLayout]:
        (rows, cols), bits = shape, scheme.bits
        scale = {"weight_scale": ((rows, cols // BLOCK), torch.uint8)}
        if bits < 8:
            return {"weight_packed": ((rows, cols * bits // 8), torch.uint8), **scale}
        return {"weight": (shape, DTYPES[next(e for e in self.elements if e.bits == bits)]), **scale}

    def pack(self, codes: Codes) -> Mapping[str, torch.Tensor]:
        element, stored = element_of(codes.data_type, codes.scheme.bits), codes.tensors["codes"]
        scale = {"weight_scale": codes.tensors["scale"]}
        if element in DTYPES:
            return {"weight": stored.view(DTYPES[element]), **scale}
        return {"weight_packed": pack_codes(_turned(stored, element), codes.scheme.bits), **scale}

    def unpack(
        self,
        tensors: Mapping[str, torch.Tensor],
        data_type: str,
        scheme: QuantizationScheme,
        shape: tuple[int, int],
        dtype: torch.dtype,
    ) -> Codes:
        element = element_of(data_type, scheme.bits)
        if element in DTYPES:
            codes = tensors["weight"].view(torch.uint8)
        else:
            codes = _turned(unpack_codes(tensors["weight_packed"], scheme.bits), element)
        return Codes(data_type, scheme, shape, dtype, {"codes": codes, "scale": tensors["weight_scale"]})


class MxFp(MicroscalingPacking):
    """Elements e2m1 two to a byte, e2m3 and e3m2 four to three bytes, e4m3 as they are."""

    name = "auto_round:mx_fp"
    format = "auto_round"
    aliases = ("auto_round:llm_compressor",)
    recorded_as = "auto_round:llm_compressor"
    elements = (E2M1, E2M3, E3M2, E4M3)


class MxFp8E5M2(MicroscalingPacking):
    """Elements e5m2 as they are."""

    name = "auto_round:mx_fp8e5m2"
    format = "auto_round"
    elements = (E5M2,)


class MxInt(MicroscalingPacking):
    """Whole numbers of 8 bits as they are, of 4 bits two to a byte, of 2 bits four to a byte."""

    name = "auto_round:mx_int"
    format = "auto_round"
    elements = (INT8, INT4, INT2)


def _turned(codes: torch.Tensor, element: Element | None) -> torch.Tensor:
    """Two's complement of four bits to sign and magnitude and back, which is the same; other codes as they are."""
    if element is not INT4:
        return codes
    turned = [code if code < 8 else (16 - code) & 7 | 8 for code in range(16)]
    turned[8] = 0  # minus zero of one form; the other form has minus eight there, which the grid does not
    table = torch.tensor(turned, dtype=torch.uint8, device=codes.device)
    return table.index_select(0, codes.reshape(-1).int()).reshape(codes.shape)
