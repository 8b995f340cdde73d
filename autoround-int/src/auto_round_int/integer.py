# SPDX-License-Identifier: Apache-2.0
"""What the integer data types answer alike: stored form, cost, what they take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from auto_round.data_type import Codes, DataType, Kernel
from auto_round.data_type.grouping import group_count, groups_stack
from auto_round_int.fused import encode_groups, offset
from auto_round_int.grid import Grid, Grouping, Settings, dequantize, widened
from auto_round_int.kernel_cpu import int4_kernel

if TYPE_CHECKING:
    from auto_round.schemes import QuantizationScheme

__all__ = ["IntegerDataType"]

SCALE_BITS = 16


class IntegerDataType(DataType):
    """An integer grid as a data type.

    Codes are stored as `codes` [out_features, in_features], int8 where the grid is symmetric and uint8 where it has a
    zero point; `scale` [out_features, groups of a row] ([1, 1] for one group per tensor), in the dtype scales are kept
    in; and `zero_point`, uint8, shaped like `scale`, where there is one.
    """

    grid: ClassVar[Grid]
    encodes = True
    searches = True

    def supports(self, scheme: QuantizationScheme, shape: tuple[int, int]) -> str | None:
        if not 2 <= scheme.bits <= 8:
            return f"{self.name} has 2 to 8 bits, not {scheme.bits}"
        if isinstance(scheme.group_size, tuple):
            return f"{self.name} has groups along a row (a whole number), not blocks of {scheme.group_size}"
        return None

    def stacks(self, scheme: QuantizationScheme, shape: tuple[int, int]) -> bool:
        return groups_stack(shape, scheme.group_size)

    def statistics(self, scheme: QuantizationScheme) -> frozenset[str]:
        """The importance of input channels; at eight bits searching gains too little to observe it for."""
        return frozenset({"imatrix"}) if scheme.bits < 8 else frozenset()

    def encode(self, weight: torch.Tensor, scheme: QuantizationScheme, **offers: Any) -> Codes:
        v, settings = offers.pop("v", 0), _settings(scheme, offers)
        min_scale, max_scale = offers.pop("min_scale", 1.0), offers.pop("max_scale", 1.0)
        if offers:
            raise TypeError(f"{self.name}.encode takes no {', '.join(map(repr, offers))}")
        with torch.no_grad():
            grouping = Grouping(weight, scheme.group_size)
            groups, bounds = grouping.groups, self.grid.bounds(scheme.bits)
            scales = self.grid.scales(groups, min_scale, max_scale, settings)
            zero_point = scales.zero_point
            codes = encode_groups(groups, offset(v, groups), scales.scale.float(), zero_point, bounds)
        shape = (weight.shape[0], weight.shape[1])
        across = 1 if scheme.group_size == 0 else scales.scale.shape[0] // shape[0]
        tensors = {"codes": grouping.revert(codes), "scale": scales.scale.reshape(-1, across)}
        if zero_point is not None:
            tensors["zero_point"] = zero_point.to(torch.uint8).reshape(-1, across)
        return Codes(self.name, scheme, shape, weight.dtype, tensors)

    def decode(self, codes: Codes) -> torch.Tensor:
        grouping = Grouping(codes.tensors["codes"], codes.scheme.group_size)
        scale = codes.tensors["scale"].float().reshape(-1, 1)
        stored_zero = codes.tensors.get("zero_point")
        zero_point = None if stored_zero is None else stored_zero.float().reshape(-1, 1)
        out = torch.empty(grouping.groups.shape, dtype=codes.dtype, device=scale.device)
        for rows, wide in widened(grouping.groups):
            zero = None if zero_point is None else zero_point[rows]
            out[rows] = dequantize(wide, scale[rows], zero)
        return grouping.revert(out)

    def kernel(self, codes: Codes) -> Kernel | None:
        return int4_kernel(codes)

    def bits_per_weight(self, scheme: QuantizationScheme, shape: tuple[int, int]) -> float:
        """Codes, 16-bit scales and zero points, as the packed layouts store them (they keep zero points always)."""
        groups = group_count(shape, scheme.group_size)[0]
        return scheme.bits + groups * (SCALE_BITS + scheme.bits) / (shape[0] * shape[1])

    def describe(self) -> Mapping[str, Any]:
        return {
            "name": self.name,
            "summary": self.summary,
            "grid": " ".join((type(self.grid).__doc__ or "").split()),
            "bits": "2 to 8",
            "group_size": "-1 (a row), 0 (the tensor) or a number of consecutive inputs",
            "scale": "one for each group, in the dtype of the format (float16 unless told otherwise)",
            "stored": " ".join((IntegerDataType.__doc__ or "").split("\n\n")[1].split()),
        }


def _settings(scheme: QuantizationScheme, offers: dict[str, Any]) -> Settings:
    """Take what makes the settings of a call out of its offers."""
    offers.pop("bits", None)
    offers.pop("group_size", None)
    known = ("tensor_min", "tensor_max", "init_scale")
    return Settings.of(
        scheme.bits,
        scheme.group_size,
        offers.pop("scale_dtype", torch.float16),
        offers.pop("q_scale_thresh", None),
        **{name: offers.pop(name) for name in known if name in offers},
    )
