# SPDX-License-Identifier: Apache-2.0
"""`fp8_to_int_sym`: integers of few bits on top of e4m3, for runtimes that unpack weights to e4m3 and compute in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from auto_round.data_type import Bounds, Codes, DataType
from auto_round.data_type.grouping import group_count
from auto_round.data_type.kernels import chunks
from auto_round.errors import SchemeError
from auto_round_fp8.hybrid_grid import (
    Given,
    Stages,
    code_bounds,
    encode_groups,
    offset,
    quantize_dequantize,
    searched_scale,
    stages_of,
)
from auto_round_fp8.runtimes import EVERYWHERE
from auto_round_fp8.scales import Factor
from auto_round_fp8.tiles import CHUNK, Tiles, part

if TYPE_CHECKING:
    from auto_round.schemes import GroupSize, QuantizationScheme

__all__ = ["Float8ToInt"]


class Float8ToInt(DataType):
    """A whole number from -2^(b-1) to 2^(b-1) - 1 times a scale of its group times a scale of the tensor.

    Stored are `codes`, int8 [out_features, in_features], `scale`, bfloat16 [out_features, groups of a row], and
    `fp8_scale`, float32 [1].
    """

    encodes = True
    searches = True
    tuned: Mapping[str, Bounds] = {"v": None, "min_scale": (0.0, 1.0), "max_scale": (0.0, 1.0)}
    tuned_after_search: Mapping[str, Bounds] | None = {"v": None, "max_scale": (0.0, 2.0)}
    summary = "integers of 2 to 8 bits on top of e4m3, a scale for each group and one for the tensor"
    runtimes = (EVERYWHERE,)

    def __init__(self, name: str) -> None:
        self.name = name

    def quant_tensor(
        self,
        tensor: torch.Tensor,
        bits: int = 4,
        group_size: GroupSize = 128,
        v: torch.Tensor | float = 0,
        min_scale: Factor = 1.0,
        max_scale: Factor = 1.0,
        q_scale_thresh: float = 1e-5,
        tensor_min: torch.Tensor | None = None,
        tensor_max: torch.Tensor | None = None,
        init_scale: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
        """Quantize and dequantize.

        Returns:
            the tensor rounded to the grid; the scale of each group, both scales multiplied, bfloat16 [groups, 1], and
            the scale of the tensor alone, float32 scalar; and 2^(bits - 1), which stands for zero in unsigned codes.
        """
        given = self._given(bits, group_size, q_scale_thresh, tensor_min, tensor_max, init_scale)
        rounded, stages = quantize_dequantize(tensor, v, min_scale, max_scale, given)
        both = (stages.scale * stages.tensor_scale).to(torch.bfloat16).reshape(-1, 1)
        return rounded, {"scale": both, "bf16_to_fp8_scale": stages.tensor_scale}, 1 << (bits - 1)

    def _given(self, bits: int, group_size: GroupSize, *more: Any) -> Given:
        if not 2 <= bits <= 8:
            raise SchemeError(f"{self.name} has 2 to 8 bits, not {bits}.")
        if isinstance(group_size, tuple):
            raise SchemeError(f"{self.name} has groups along a row, not blocks of {group_size}.")
        return Given(bits, group_size, *more)

    def supports(self, scheme: QuantizationScheme, shape: tuple[int, int]) -> str | None:
        if not 2 <= scheme.bits <= 8:
            return f"{self.name} has 2 to 8 bits, not {scheme.bits}"
        if isinstance(scheme.group_size, tuple):
            return f"{self.name} has groups along a row (a whole number), not blocks of {scheme.group_size}"
        if not scheme.sym:
            return f"{self.name} is symmetric around zero and has no zero point"
        return None

    def statistics(self, scheme: QuantizationScheme) -> frozenset[str]:
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
        """The scale of each group that fits it best, as `init_scale`, float32 [groups, 1]; it is stored as bfloat16."""
        return {"init_scale": searched_scale(weight, imatrix, self._given(scheme.bits, scheme.group_size))}

    def encode(self, weight: torch.Tensor, scheme: QuantizationScheme, **offers: Any) -> Codes:
        told = {n: o for n, o in offers.items() if n not in ("bits", "group_size", "scale_dtype")}
        v, low, high = told.pop("v", 0), told.pop("min_scale", 1.0), told.pop("max_scale", 1.0)
        ranges = [told.pop(n, None) for n in ("tensor_min", "tensor_max", "init_scale")]
        given = self._given(scheme.bits, scheme.group_size, told.pop("q_scale_thresh", 1e-5), *ranges)
        if told:
            raise TypeError(f"{self.name}.encode takes no {', '.join(map(repr, told))}")
        with torch.no_grad():
            tiles = Tiles(weight.shape, scheme.group_size)
            stages = stages_of(weight, tiles, low, high, given)
            codes = encode_groups(
                tiles.view(weight),
                offset(v, tiles),
                tiles.spread(stages.scale),
                stages.tensor_scale,
                code_bounds(scheme.bits),
            )
        shape = (weight.shape[0], weight.shape[1])
        across = 1 if scheme.group_size == 0 else stages.scale.numel() // shape[0]
        tensors = {
            "codes": tiles.crop(codes),
            "scale": stages.scale.to(torch.bfloat16).reshape(-1, across),
            "fp8_scale": stages.tensor_scale.reshape(1),
        }
        return Codes(self.name, scheme, shape, weight.dtype, tensors)

    def decode(self, codes: Codes) -> torch.Tensor:
        stored = codes.tensors["codes"]
        stages = Stages(codes.tensors["scale"].float(), codes.tensors["fp8_scale"].float().reshape(()))
        tiles = Tiles(stored.shape, codes.scheme.group_size)
        groups, spread = tiles.view(stored), tiles.spread(stages.scale)
        out = tiles.empty(codes.dtype, stored.device)
        for rows in chunks(groups, CHUNK):
            out[rows] = groups[rows].float().mul_(part(spread, rows)).mul_(stages.tensor_scale)
        return tiles.crop(out)

    def bits_per_weight(self, scheme: QuantizationScheme, shape: tuple[int, int]) -> float:
        """Codes and bfloat16 scales; the scale of the tensor is nothing beside them."""
        return scheme.bits + group_count(shape, scheme.group_size)[0] * 16 / (shape[0] * shape[1])

    def describe(self) -> Mapping[str, Any]:
        return {
            "name": self.name,
            "summary": self.summary,
            "grid": "whole numbers from -2^(b-1) to 2^(b-1) - 1, laid over the weight rounded to e4m3",
            "bits": "2 to 8",
            "group_size": "-1 (a row), 0 (the tensor) or a number of consecutive inputs",
            "scale": "bfloat16 for each group, may be negative, times one float32 for the tensor",
            "stored": " ".join((Float8ToInt.__doc__ or "").split("\n\n")[1].split()),
        }


FP8_TO_INT_SYM = Float8ToInt("fp8_to_int_sym")
W4FP8 = Float8ToInt("w4fp8")
