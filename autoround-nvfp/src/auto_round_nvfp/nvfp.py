# SPDX-License-Identifier: Apache-2.0
"""The data types of the family: which format their block scales have, and whether there is a scale of the tensor.

Two levels of scales in four-bit floats: NVIDIA, "Pretraining Large Language Models with NVFP4", 2025, arXiv:2509.25149.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from auto_round.data_type import Bounds, Codes, DataType, Runtime
from auto_round.data_type.grouping import group_count
from auto_round_nvfp.blocks import (
    BlockScale,
    Factor,
    Grouping,
    Settings,
    global_scale_of,
)
from auto_round_nvfp.fused import offset, quantize_dequantize
from auto_round_nvfp.minifloat import E4M3, UE5M3
from auto_round_nvfp.rounding import decode_groups, encode_groups
from auto_round_nvfp.search import search_scales

if TYPE_CHECKING:
    from auto_round.schemes import GroupSize, QuantizationScheme

__all__ = ["BlockScaledFloat", "NvFp4", "NvFp4StaticGlobalScale", "NvFp4V2", "NvFp4V2GlobalScale"]

BITS = 4


class BlockScaledFloat(DataType):
    """Four-bit floats in blocks that share a scale, itself an eight-bit float.

    Codes are stored as `codes`, uint8 [out_features, in_features], 0 to 15: the sign in bit 3, below it the magnitude's
    place among 0, 0.5, 1, 1.5, 2, 3, 4 and 6; `scale` [out_features, blocks of a row], float8_e4m3fn, or uint8 for
    UE5M3; and where the tensor has a scale, `global_scale`, float32 [1], which block scales are divided by.
    """

    block_scale: ClassVar[BlockScale]
    group_sizes: ClassVar[tuple[int, ...]]
    tuned: Mapping[str, Bounds] = {"v": None, "max_scale": (0.0, 1.0)}
    tuned_after_search: Mapping[str, Bounds] | None = {"v": None, "max_scale": (0.0, 2.0)}
    encodes = True
    searches = True

    def supports(self, scheme: QuantizationScheme, shape: tuple[int, int]) -> str | None:
        if scheme.bits != BITS or not scheme.sym:
            return (
                f"{self.name} is symmetric and has {BITS} bits, not {scheme.bits}{'' if scheme.sym else ' asymmetric'}"
            )
        if scheme.group_size not in self.group_sizes:
            sizes = " or ".join(map(str, self.group_sizes))
            return f"{self.name} has blocks of {sizes} inputs, not {scheme.group_size}"
        if shape[1] % scheme.group_size:
            return f"{shape[1]} inputs are not a multiple of the block size, {scheme.group_size}"
        return None

    def stacks(self, scheme: QuantizationScheme, shape: tuple[int, int]) -> bool:
        return not self.block_scale.two_levels

    def statistics(self, scheme: QuantizationScheme) -> frozenset[str]:
        return frozenset({"imatrix"})

    def share(self, weights: Sequence[torch.Tensor], scheme: QuantizationScheme) -> Mapping[str, torch.Tensor]:
        """One scale for all of the tensors, made from the largest magnitude in any, as `global_scale`."""
        if not self.block_scale.two_levels:
            return {}
        largest = torch.stack([weight.detach().abs().amax().float().cpu() for weight in weights]).amax()
        return {"global_scale": global_scale_of(largest, self.block_scale.format).to(weights[0].device)}

    def freeze(self, low: torch.Tensor, high: torch.Tensor, scheme: QuantizationScheme) -> Mapping[str, torch.Tensor]:
        """The scale of the tensor for this range, as `global_scale`, float32 [1]; nothing where there is none."""
        if not self.block_scale.two_levels:
            return {}
        largest = torch.maximum(high.float().abs(), low.float().abs()).amax()
        return {"global_scale": global_scale_of(largest, self.block_scale.format).reshape(1)}

    def search(
        self,
        weight: torch.Tensor,
        scheme: QuantizationScheme,
        *,
        imatrix: torch.Tensor | None,
        scale_dtype: torch.dtype,
        **shared: torch.Tensor,
    ) -> Mapping[str, torch.Tensor]:
        """The block scales that fit best, as they are stored, as `init_scale`, float32 [blocks, 1]."""
        settings = Settings(scheme.group_size, global_scale=shared.get("global_scale"))
        return {"init_scale": search_scales(weight, imatrix, self.block_scale, settings)}

    def encode(self, weight: torch.Tensor, scheme: QuantizationScheme, **offers: Any) -> Codes:
        v, max_scale = offers.pop("v", 0), offers.pop("max_scale", 1.0)
        settings = _settings(scheme, offers)
        if offers:
            raise TypeError(f"{self.name}.encode takes no {', '.join(map(repr, offers))}")
        with torch.no_grad():
            grouping = Grouping(weight, scheme.group_size)
            groups = grouping.groups
            shift = offset(v, groups)
            codes, block, tensor_scale = encode_groups(self.block_scale, groups, shift, max_scale, settings)
        shape = (weight.shape[0], weight.shape[1])
        across = 1 if scheme.group_size == 0 else groups.shape[0] // shape[0]
        stored = self.block_scale.format.store(block)
        tensors = {"codes": grouping.revert(codes), "scale": stored.reshape(-1, across)}
        if tensor_scale is not None:
            # A copy: layers that share the scale do not share storage, which no file could keep.
            tensors["global_scale"] = tensor_scale.reshape(1).clone()
        return Codes(self.name, scheme, shape, weight.dtype, tensors)

    def decode(self, codes: Codes) -> torch.Tensor:
        grouping = Grouping(codes.tensors["codes"], codes.scheme.group_size)
        block = self.block_scale.format.load(codes.tensors["scale"]).reshape(-1, 1)
        step = self.block_scale.steps(block, codes.tensors.get("global_scale")).step
        return grouping.revert(decode_groups(grouping.groups, step, codes.dtype))

    def bits_per_weight(self, scheme: QuantizationScheme, shape: tuple[int, int]) -> float:
        scales = 8 * group_count(shape, scheme.group_size)[0] + (32 if self.block_scale.two_levels else 0)
        return BITS + scales / (shape[0] * shape[1])

    def describe(self) -> Mapping[str, Any]:
        two_levels = self.block_scale.two_levels
        return {
            "name": self.name,
            "summary": self.summary,
            "grid": "0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives (E2M1)",
            "bits": str(BITS),
            "group_size": " or ".join(map(str, self.group_sizes)) + " consecutive inputs",
            "scale": f"one for each block, {self.block_scale.format.name}"
            + (", divided by one for the tensor, float32" if two_levels else ""),
            "stored": " ".join((BlockScaledFloat.__doc__ or "").split("\n\n")[1].split()),
        }


class NvFp4(BlockScaledFloat):
    """Blocks of 16 under an E4M3 scale each, and a float32 scale of the tensor."""

    name = "nv_fp4"
    summary = "FP4 in blocks of 16 under E4M3 scales and one float32 scale of the tensor (NVFP4)"
    block_scale = BlockScale(E4M3, two_levels=True)
    group_sizes: ClassVar[tuple[int, ...]] = (16,)
    runtimes: tuple[Runtime, ...] = (
        Runtime("transformers", "5.23", "auto_round", note="through this package"),
        Runtime(
            "transformers",
            "5.23",
            "llm_compressor",
            note="with compressed-tensors 0.20, which decodes the weights and simulates four-bit activations; load in "
            "the checkpoint's own dtype",
            experts=False,
        ),
        # What its documentation says. On a CPU, where it has no kernel, its emulation was seen to read the files.
        Runtime(
            "vllm",
            "0.13",
            "llm_compressor",
            ("cuda",),
            fuses=True,
            note="four-bit activations from compute capability 10 on; older GPUs compute with the weights alone",
        ),
    )

    def quant_tensor(
        self,
        tensor: torch.Tensor,
        group_size: GroupSize = 16,
        v: torch.Tensor | float = 0,
        max_scale: Factor = 1.0,
        tensor_min: torch.Tensor | None = None,
        tensor_max: torch.Tensor | None = None,
        init_scale: torch.Tensor | None = None,
        global_scale: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        """Quantize and dequantize.

        Args:
            tensor_min, tensor_max: the range of each block, float32 [blocks].
            init_scale: block scales that were searched, before division by `global_scale`, float32 [blocks, 1].
            global_scale: the scale of the tensor, float32 scalar; made from the tensor where it is not given.

        Returns:
            the tensor rounded to the grid, and the block scales as stored, float32 [blocks, 1].
        """
        settings = Settings(group_size, tensor_min, tensor_max, init_scale, global_scale)
        rounded, scales = quantize_dequantize(self.block_scale, tensor, v, max_scale, settings)
        return rounded, scales.block, None


class NvFp4StaticGlobalScale(BlockScaledFloat):
    """The same for activations: the scale of the tensor is fixed at calibration, those of blocks are not."""

    name = "nv_fp4_with_static_gs"
    summary = "activations in FP4 as nv_fp4, the scale of the tensor fixed at calibration"
    block_scale = BlockScale(E4M3, two_levels=True)
    group_sizes = (16,)
    tuned: Mapping[str, Bounds] = {}
    tuned_after_search = None
    searches = False
    runtimes = NvFp4.runtimes

    def quant_tensor(
        self,
        tensor: torch.Tensor,
        group_size: GroupSize = 16,
        tensor_min: torch.Tensor | None = None,
        tensor_max: torch.Tensor | None = None,
        global_scale: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        """Quantize and dequantize.

        Args:
            tensor: [..., features].
            tensor_min, tensor_max: the range of inputs observed over calibration, of which the largest magnitude
                makes the scale of the tensor.
            global_scale: that scale itself, float32 [1]; without either it is made from the tensor.

        Returns:
            the tensor rounded to the grid, and the block scales, float32 [blocks, 1].
        """
        if global_scale is None and tensor_max is not None:
            low = tensor_max if tensor_min is None else tensor_min
            largest = torch.maximum(tensor_max.abs().amax(), low.abs().amax())
            global_scale = global_scale_of(largest, self.block_scale.format)
        settings = Settings(group_size, global_scale=global_scale)
        rounded, scales = quantize_dequantize(self.block_scale, tensor, 0, 1.0, settings)
        return rounded, scales.block, None

    def encode(self, weight: torch.Tensor, scheme: QuantizationScheme, **offers: Any) -> Codes:
        low, high = offers.pop("tensor_min", None), offers.pop("tensor_max", None)
        if high is not None and offers.get("global_scale") is None:
            offers |= self.freeze(high if low is None else low, high, scheme)
        return super().encode(weight, scheme, **offers)


class NvFp4V2(BlockScaledFloat):
    """Blocks of 16 or 32 under a UE5M3 scale each, whose range makes a scale of the tensor unnecessary."""

    name = "nvfp4_v2"
    summary = "FP4 in blocks of 16 or 32 under UE5M3 scales, no scale of the tensor (NVFP4_E5M3)"
    block_scale = BlockScale(UE5M3, two_levels=False)
    group_sizes = (16, 32)
    runtimes = (Runtime("transformers", "5.23", "auto_round", note="through this package"),)

    def quant_tensor(
        self,
        tensor: torch.Tensor,
        group_size: GroupSize = 16,
        v: torch.Tensor | float = 0,
        max_scale: Factor = 1.0,
        tensor_min: torch.Tensor | None = None,
        tensor_max: torch.Tensor | None = None,
        init_scale: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        """Quantize and dequantize.

        Args:
            tensor_min, tensor_max: the range of each block, float32 [blocks].
            init_scale: block scales that were searched, float32 [blocks, 1].

        Returns:
            the tensor rounded to the grid, and the block scales as stored, float32 [blocks, 1].
        """
        settings = Settings(group_size, tensor_min, tensor_max, init_scale)
        rounded, scales = quantize_dequantize(self.block_scale, tensor, v, max_scale, settings)
        return rounded, scales.block, None


class NvFp4V2GlobalScale(NvFp4):
    """Blocks of 16 or 32 under a UE5M3 scale each, and a float32 scale of the tensor."""

    name = "nvfp4_v2_with_global_scale"
    summary = "FP4 in blocks of 16 or 32 under UE5M3 scales and one float32 scale of the tensor"
    block_scale = BlockScale(UE5M3, two_levels=True)
    group_sizes = (16, 32)
    runtimes = NvFp4V2.runtimes


def _settings(scheme: QuantizationScheme, offers: dict[str, Any]) -> Settings:
    """Take what makes the settings of a call out of its offers."""
    offers.pop("group_size", None)
    known = ("tensor_min", "tensor_max", "init_scale", "global_scale")
    return Settings(scheme.group_size, **{name: offers.pop(name) for name in known if name in offers})
