# SPDX-License-Identifier: Apache-2.0
"""The data types of the family: one element each, with a scale per tensor, row, group or block, or without any."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from auto_round.data_type import Bounds, Codes, DataType
from auto_round.data_type.grouping import group_count, groups_stack
from auto_round.errors import SchemeError
from auto_round_fp8.elements import E4M3, E4M3FNUZ, E5M2, Element
from auto_round_fp8.fused import decoded, quantize_dequantize, rounded_codes
from auto_round_fp8.runtimes import runtimes_of
from auto_round_fp8.scales import Factor, Settings, frozen_scale
from auto_round_fp8.search import searched_scale
from auto_round_fp8.tiles import Tiles

if TYPE_CHECKING:
    from auto_round.schemes import GroupSize, QuantizationScheme

__all__ = ["Float8", "Float8Block", "Float8Dynamic", "Float8Unit", "scale_shape"]

SCALE_BITS = 32


class Float8(DataType):
    """An 8-bit floating point number times a float32 scale that it shares with its group.

    Stored are `codes`, [out_features, in_features] in torch's dtype of the element, and `scale`: float32, or the dtype
    the format keeps scales in, [out_features, groups of a row], [1, 1] for one group per tensor, [blocks down, blocks
    across] for blocks.
    """

    encodes = True
    searches: ClassVar[bool] = True
    tuned: Mapping[str, Bounds] = {"v": None, "max_scale": (0.0, 1.0)}
    tuned_after_search: Mapping[str, Bounds] | None = {"v": (-0.5, 0.5), "max_scale": (0.0, 2.0)}
    scale_dtype = torch.float32
    unit: ClassVar[bool] = False

    def __init__(self, name: str, element: Element, summary: str) -> None:
        self.name, self.element, self.summary = name, element, summary
        self.runtimes = runtimes_of(element)

    def quant_tensor(
        self,
        tensor: torch.Tensor,
        bits: int = 8,
        group_size: GroupSize = -1,
        v: torch.Tensor | float = 0,
        max_scale: Factor = 1.0,
        scale_dtype: torch.dtype = torch.float32,
        tensor_min: torch.Tensor | None = None,
        tensor_max: torch.Tensor | None = None,
        init_scale: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        """Quantize and dequantize.

        Returns:
            the tensor rounded to the grid, the scale, float32 [groups, 1] or [blocks down, blocks across], and None.
        """
        settings = self._settings(
            bits,
            group_size=group_size,
            scale_dtype=scale_dtype,
            tensor_min=tensor_min,
            tensor_max=tensor_max,
            init_scale=init_scale,
        )
        rounded, scale = quantize_dequantize(tensor, v, max_scale, settings)
        return rounded, scale, None

    def _settings(self, bits: int, **told: Any) -> Settings:
        if bits != 8:
            raise SchemeError(f"{self.name} has 8 bits, not {bits}.")
        return Settings(self.element, unit=self.unit, **told)

    def supports(self, scheme: QuantizationScheme, shape: tuple[int, int]) -> str | None:
        if scheme.bits != 8:
            return f"{self.name} has 8 bits, not {scheme.bits}"
        if not scheme.sym:
            return f"{self.name} is symmetric around zero and has no zero point"
        return None

    def stacks(self, scheme: QuantizationScheme, shape: tuple[int, int]) -> bool:
        return groups_stack(shape, scheme.group_size)

    def statistics(self, scheme: QuantizationScheme) -> frozenset[str]:
        return frozenset({"imatrix"}) if self.searches else frozenset()

    def freeze(self, low: torch.Tensor, high: torch.Tensor, scheme: QuantizationScheme) -> Mapping[str, torch.Tensor]:
        """One scale for all inputs, as `init_scale`, float32 [1]."""
        if self.unit:
            return {}
        return {"init_scale": frozen_scale(low, high, self.element)}

    def search(
        self,
        weight: torch.Tensor,
        scheme: QuantizationScheme,
        *,
        imatrix: torch.Tensor | None,
        scale_dtype: torch.dtype,
        **shared: torch.Tensor,
    ) -> Mapping[str, torch.Tensor]:
        """The scale of each group that fits it best, as `init_scale`: float32 [groups, 1] or [blocks down, across]."""
        settings = self._settings(scheme.bits, group_size=scheme.group_size, scale_dtype=scale_dtype)
        return {"init_scale": searched_scale(weight, imatrix, settings)}

    def encode(self, weight: torch.Tensor, scheme: QuantizationScheme, **offers: Any) -> Codes:
        given = {name: value for name, value in offers.items() if name not in ("bits", "group_size")}
        v, max_scale = given.pop("v", 0), given.pop("max_scale", 1.0)
        scale_dtype = given.pop("scale_dtype", torch.float32)
        unknown = sorted(given.keys() - self.offers)
        if unknown:
            raise TypeError(f"{self.name}.encode takes no {', '.join(map(repr, unknown))}")
        settings = self._settings(scheme.bits, group_size=scheme.group_size, scale_dtype=scale_dtype, **given)
        with torch.no_grad():
            codes, scale = rounded_codes(weight, v, max_scale, settings)
        shape = (weight.shape[0], weight.shape[1])
        tensors = {"codes": codes}
        if not self.unit:
            tensors["scale"] = scale.reshape(scale_shape(shape, scheme.group_size)).to(scale_dtype)
        return Codes(self.name, scheme, shape, weight.dtype, tensors)

    def decode(self, codes: Codes) -> torch.Tensor:
        stored = codes.tensors["codes"]
        scale = torch.ones(1, device=stored.device) if self.unit else codes.tensors["scale"].float()
        return dequantized(stored, scale, codes.scheme.group_size, codes.dtype)

    def bits_per_weight(self, scheme: QuantizationScheme, shape: tuple[int, int]) -> float:
        """Codes and float32 scales."""
        if self.unit:
            return 8.0
        rows, cols = scale_shape(shape, scheme.group_size)
        return 8.0 + rows * cols * SCALE_BITS / (shape[0] * shape[1])

    def describe(self) -> Mapping[str, Any]:
        element = self.element
        scale = "none" if self.unit else "one for each group, float32 unless the format keeps another dtype"
        return {
            "name": self.name,
            "summary": self.summary,
            "grid": f"{element.name}, {element.mantissa} bits of mantissa, up to {element.largest:g}",
            "bits": "8",
            "group_size": "-1 (a row), 0 (the tensor), a number of consecutive inputs, or (rows, inputs) of a block",
            "scale": scale,
            "stored": " ".join((Float8.__doc__ or "").split("\n\n")[1].split()),
        }


class Float8Block(Float8):
    """The same with one scale for a block of rows and inputs."""

    def supports(self, scheme: QuantizationScheme, shape: tuple[int, int]) -> str | None:
        if not isinstance(scheme.group_size, tuple):
            return f"{self.name} has blocks (rows, inputs), not group_size={scheme.group_size}"
        return super().supports(scheme, shape)


class Float8Unit(Float8):
    """The element alone, without a scale."""

    searches = False
    unit = True
    tuned: Mapping[str, Bounds] = {"v": None}
    tuned_after_search = None

    def quant_tensor(  # type: ignore[override]  # takes fewer offers than its parent
        self, tensor: torch.Tensor, bits: int = 8, group_size: GroupSize = -1, v: torch.Tensor | float = 0
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        """Round to the element; what is beyond its largest number becomes that. The scale returned is one."""
        rounded, scale = quantize_dequantize(tensor, v, 1.0, self._settings(bits, group_size=group_size))
        return rounded, scale.reshape(1), None


class Float8Dynamic(Float8):
    """Activations with a scale for each token, computed as the model runs, whatever is known of their range."""

    searches = False
    tuned: Mapping[str, Bounds] = {"v": None, "max_scale": (0.0, 1.0)}
    tuned_after_search = None

    def quant_tensor(  # type: ignore[override]  # takes fewer offers than its parent
        self,
        tensor: torch.Tensor,
        bits: int = 8,
        v: torch.Tensor | float = 0,
        max_scale: Factor = 1.0,
        scale_dtype: torch.dtype = torch.float32,
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        """Quantize and dequantize every row by itself; the scale is float32 [rows, 1]."""
        return super().quant_tensor(tensor, bits, -1, v, max_scale, scale_dtype)

    def supports(self, scheme: QuantizationScheme, shape: tuple[int, int]) -> str | None:
        if scheme.group_size != -1:
            return f"{self.name} has one scale for a row (group_size -1), not group_size={scheme.group_size}"
        return super().supports(scheme, shape)

    def freeze(self, low: torch.Tensor, high: torch.Tensor, scheme: QuantizationScheme) -> Mapping[str, torch.Tensor]:
        raise SchemeError(
            f"{self.name} computes scales as the model runs; for act_dynamic=False take act_data_type=fp8."
        )


def scale_shape(shape: tuple[int, int], group_size: GroupSize) -> tuple[int, int]:
    """Shape of the stored scales of a weight."""
    counts = group_count(shape, group_size)
    if len(counts) == 2:
        return counts
    across = 1 if group_size == 0 else counts[0] // shape[0]
    return (counts[0] // across, across)


def dequantized(codes: torch.Tensor, scale: torch.Tensor, group_size: GroupSize, dtype: torch.dtype) -> torch.Tensor:
    """The values `s q` of codes, [out_features, in_features].

    Args:
        codes: [out_features, in_features] in an 8-bit dtype.
        scale: float32, one value for each group in any shape, or a single one.
        dtype: of the result; the product is float32 and rounded once.
    """
    tiles = Tiles(codes.shape, group_size)
    return tiles.crop(decoded(tiles.view(codes), tiles.spread(scale), dtype))


GROUPED = "with a scale per tensor, row or group"
BLOCKS = "with a scale per block of rows and inputs"

FP8 = Float8("fp8", E4M3, f"e4m3 {GROUPED}")
FP8_SYM = Float8("fp8_sym", E4M3, f"e4m3 {GROUPED}")
FP8_E4M3 = Float8("fp8_e4m3", E4M3, f"e4m3 {GROUPED}")
FP8_E5M2 = Float8("fp8_e5m2", E5M2, f"e5m2 {GROUPED}")
FP8_E4M3FNUZ = Float8("fp8_e4m3fnuz", E4M3FNUZ, f"e4m3fnuz {GROUPED}, for devices that have this form of e4m3")
BLOCK_FP8 = Float8Block("block_fp8", E4M3, f"e4m3 {BLOCKS}")
BLOCK_FP8_SYM = Float8Block("block_fp8_sym", E4M3, f"e4m3 {BLOCKS}")
BLOCK_FP8_E4M3 = Float8Block("block_fp8_e4m3", E4M3, f"e4m3 {BLOCKS}")
FP8_UNIT_SCALE = Float8Unit("fp8_unit_scale", E4M3, "e4m3 without a scale")
FP8_E5M2_UNIT_SCALE = Float8Unit("fp8_e5m2_unit_scale", E5M2, "e5m2 without a scale")
FP8_DYNAMIC = Float8Dynamic("fp8_dynamic", E4M3, "e4m3 with a scale per token, for activations")
