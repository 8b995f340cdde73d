# SPDX-License-Identifier: Apache-2.0
"""Microscaling as a data type: blocks of elements of a few bits that share one power of two.

OCP Microscaling Formats (MX) Specification 1.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from auto_round.data_type import Bounds, Codes, DataType
from auto_round.data_type.grouping import group_count, groups_stack
from auto_round.errors import SchemeError
from auto_round_mxfp.blocks import Factor, Grouping, Settings
from auto_round_mxfp.elements import SCALE_BIAS, Element, ScaleRule, element_values
from auto_round_mxfp.fused import offset, quantize_dequantize
from auto_round_mxfp.kernels import decode_blocks, encode_blocks
from auto_round_mxfp.names import DATA_TYPES, Name
from auto_round_mxfp.runtimes import RUNTIMES
from auto_round_mxfp.search import searched_scale

if TYPE_CHECKING:
    from auto_round.schemes import GroupSize, QuantizationScheme

__all__ = ["Microscaling"]

SCALE_BITS = 8


class Microscaling(DataType):
    """One element format and one rule for the shared exponent; a name of several widths takes its bits from the scheme.

    Codes are stored as `codes` [out_features, in_features], uint8, the code of an element in the lowest bits (sign and
    magnitude; two's complement for whole numbers); and `scale` [out_features, blocks of a row] ([1, 1] for one block
    per tensor), uint8, the code of E8M0: the shared exponent plus 127, from 0 to 254.
    """

    encodes = True
    searches = True
    tuned: Mapping[str, Bounds] = {"v": None, "max_scale": (0.0, 1.0)}
    runtimes = RUNTIMES

    def __init__(self, known: Name) -> None:
        self.name = known.name
        self.summary = known.summary
        self.rule: ScaleRule = known.rule
        self.elements: Mapping[int, Element] = {element.bits: element for element in known.elements}

    def element(self, bits: int | None) -> Element:
        """The element format at a number of bits; None means the only one.

        Raises:
            SchemeError: this data type has none of that width.
        """
        if bits is None and len(self.elements) == 1:
            return next(iter(self.elements.values()))
        if bits is None or bits not in self.elements:
            raise SchemeError(f"{self._widths(bits)}.")
        return self.elements[bits]

    def _widths(self, bits: int | None) -> str:
        return f"{self.name} has {' or '.join(map(str, self.elements))} bits, not {bits}"

    def quant_tensor(
        self,
        tensor: torch.Tensor,
        bits: int | None = None,
        group_size: GroupSize = 32,
        v: torch.Tensor | float = 0.0,
        max_scale: Factor = 1.0,
        tensor_min: torch.Tensor | None = None,
        tensor_max: torch.Tensor | None = None,
        init_scale: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        """Quantize and dequantize.

        Returns:
            the tensor rounded to the format; the shared exponents, whole numbers, float32 [groups, 1]; no zero point.
        """
        settings = Settings(self.element(bits), self.rule, group_size, tensor_min, tensor_max, init_scale)
        rounded, exponents = quantize_dequantize(tensor, v, max_scale, settings)
        return rounded, exponents.float().unsqueeze(-1), None

    def supports(self, scheme: QuantizationScheme, shape: tuple[int, int]) -> str | None:
        if scheme.bits not in self.elements:
            return self._widths(scheme.bits)
        if not scheme.sym:
            return f"{self.name} is symmetric and has no zero point"
        if isinstance(scheme.group_size, tuple):
            return f"{self.name} has blocks along a row (a whole number), not {scheme.group_size}"
        return None

    def stacks(self, scheme: QuantizationScheme, shape: tuple[int, int]) -> bool:
        return groups_stack(shape, scheme.group_size)

    def statistics(self, scheme: QuantizationScheme) -> frozenset[str]:
        """The importance of input channels; at eight bits searching gains too little to observe it for."""
        return frozenset({"imatrix"}) if scheme.bits < 8 else frozenset()

    def search(
        self,
        weight: torch.Tensor,
        scheme: QuantizationScheme,
        *,
        imatrix: torch.Tensor | None,
        scale_dtype: torch.dtype,
        **shared: torch.Tensor,
    ) -> Mapping[str, torch.Tensor]:
        """The scale of each block that fits it best, a power of two, as `init_scale`, float32 [groups, 1]."""
        settings = Settings(self.element(scheme.bits), self.rule, scheme.group_size)
        return {"init_scale": searched_scale(weight, imatrix, settings)}

    def encode(self, weight: torch.Tensor, scheme: QuantizationScheme, **offers: Any) -> Codes:
        settings, v, max_scale = self._settings(scheme, offers)
        shape = (weight.shape[0], weight.shape[1])
        with torch.no_grad():
            grouping = Grouping(weight, scheme.group_size)
            groups = grouping.groups
            codes, exponents = encode_blocks(groups, offset(v, groups), max_scale, settings)
            scale = (exponents + SCALE_BIAS).to(torch.uint8)
        across = 1 if scheme.group_size == 0 else len(scale) // shape[0]
        tensors = {"codes": grouping.revert(codes), "scale": scale.reshape(-1, across)}
        return Codes(self.name, scheme, shape, weight.dtype, tensors)

    def decode(self, codes: Codes) -> torch.Tensor:
        grouping = Grouping(codes.tensors["codes"], codes.scheme.group_size)
        exponents = codes.tensors["scale"].reshape(-1).int() - SCALE_BIAS
        return grouping.revert(decode_blocks(grouping.groups, exponents, self.element(codes.scheme.bits), codes.dtype))

    def bits_per_weight(self, scheme: QuantizationScheme, shape: tuple[int, int]) -> float:
        groups = group_count(shape, scheme.group_size)[0]
        return scheme.bits + groups * SCALE_BITS / (shape[0] * shape[1])

    def describe(self) -> Mapping[str, Any]:
        formats = {element.name: _grid(element) for element in self.elements.values()}
        return {
            "name": self.name,
            "summary": self.summary,
            "elements": formats,
            "bits": " or ".join(map(str, self.elements)),
            "group_size": "32; other numbers of consecutive inputs, -1 and 0 fit no other runtime's files",
            "scale": f"a power of two for each block, exponent {self.rule.formula}, stored as E8M0 without its NaN",
            "stored": " ".join((Microscaling.__doc__ or "").split("\n\n")[1].split()),
        }

    def _settings(
        self, scheme: QuantizationScheme, offers: dict[str, Any]
    ) -> tuple[Settings, torch.Tensor | float, Factor]:
        """Take the offers of `quant_tensor` apart.

        Raises:
            TypeError: one that it does not have.
        """
        unknown = offers.keys() - self.offers
        if unknown:
            raise TypeError(f"{self.name}.encode takes no {', '.join(map(repr, sorted(unknown)))}")
        known = {name: offers[name] for name in ("tensor_min", "tensor_max", "init_scale") if name in offers}
        settings = Settings(self.element(scheme.bits), self.rule, scheme.group_size, **known)
        return settings, offers.get("v", 0.0), offers.get("max_scale", 1.0)


def _grid(element: Element) -> str:
    values = sorted({abs(value) for value in element_values(element) if abs(value) <= element.max})
    listed = [f"{value:g}" for value in values]
    return "+-" + (" ".join(listed) if len(listed) <= 8 else f"{' '.join(listed[:4])} ... {' '.join(listed[-2:])}")


def __getattr__(name: str) -> Microscaling:
    """A data type by its registered name, for the records of the hooks."""
    if name not in DATA_TYPES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return Microscaling(DATA_TYPES[name])
