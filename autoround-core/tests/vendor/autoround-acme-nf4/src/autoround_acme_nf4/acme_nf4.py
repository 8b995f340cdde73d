"""acme_nf4: 4-bit NormalFloat with double quantization (Dettmers et al. 2023, QLoRA, arXiv:2305.14314, section 3).

With s the scale of a block of 64, its largest magnitude, a weight w becomes s * LEVELS[c]; its code c is the place of
w / s among the levels, rounded. Scales are stored in 8 bits: with m their mean over the tensor, the scale of code k in a
block of 256 scales is m + k * d, where d is the largest |s - m| of that block over 127. The paper takes 8-bit floats for
k; these are whole numbers. While a model is tuned, an offset v is added to the place before it is rounded, and s is
multiplied by max_scale; both are learnt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from auto_round.data_type import Bounds, Codes, DataType, Runtime
from auto_round.data_type.grouping import group_count, reshape_pad_tensor_by_group_size, revert_tensor_by_pad
from auto_round.data_type.rounding import round_ste

if TYPE_CHECKING:
    from auto_round.schemes import QuantizationScheme

LEVELS = torch.tensor(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)
"""Quantiles of the normal distribution, paper's appendix E."""
BITS, SCALE_BITS, SCALE_BLOCK = 4, 8, 256
TOP = 127  # the largest code of a scale


class AcmeNf4(DataType):
    """Stored as `codes`, uint8 [out_features, in_features], and three tensors for the scales.

    `scale_codes`, int8 [out_features, blocks of a row]; `scale_steps`, float32 [blocks of 256 scales]; `scale_mean`,
    float32 [1].
    """

    name = "acme_nf4"
    summary = "4-bit NormalFloat of QLoRA, scales in 8 bits"
    tuned: Mapping[str, Bounds] = {"v": None, "max_scale": (0.5, 1.0)}
    encodes = True
    runtimes = (Runtime("transformers", "5.0", "auto_round", note="through this package"),)

    def supports(self, scheme: QuantizationScheme, shape: tuple[int, int]) -> str | None:
        if scheme.bits != BITS or not scheme.sym:
            return f"{self.name} is symmetric and has {BITS} bits"
        if isinstance(scheme.group_size, tuple) or scheme.group_size == 0:
            return f"{self.name} has groups along a row, not {scheme.group_size}"
        return None

    def quant_tensor(
        self,
        tensor: torch.Tensor,
        group_size: int = 64,
        v: torch.Tensor | float = 0.0,
        max_scale: torch.Tensor | float = 1.0,
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        groups, shape, padding = reshape_pad_tensor_by_group_size(tensor.float(), group_size)
        scale = decoded_scales(*encoded_scales(groups, max_scale))
        levels, _ = nearest(groups / scale, v)
        return revert_tensor_by_pad(levels * scale, shape, padding).to(tensor.dtype), scale, None

    def encode(self, weight: torch.Tensor, scheme: QuantizationScheme, **offers: Any) -> Codes:
        groups, shape, padding = reshape_pad_tensor_by_group_size(weight.float(), scheme.group_size)
        scale_codes, steps, mean = encoded_scales(groups, offers.get("max_scale", 1.0))
        _, codes = nearest(groups / decoded_scales(scale_codes, steps, mean), offers.get("v", 0.0))
        rows, columns = weight.shape
        tensors = {
            "codes": revert_tensor_by_pad(codes, shape, padding).to(torch.uint8),
            "scale_codes": scale_codes.to(torch.int8).reshape(rows, -1),
            "scale_steps": steps,
            "scale_mean": mean,
        }
        return Codes(self.name, scheme, (rows, columns), weight.dtype, tensors)

    def decode(self, codes: Codes) -> torch.Tensor:
        groups, shape, padding = reshape_pad_tensor_by_group_size(codes.tensors["codes"], codes.scheme.group_size)
        stored = (codes.tensors[name] for name in ("scale_codes", "scale_steps", "scale_mean"))
        scale = decoded_scales(*stored)
        return revert_tensor_by_pad(LEVELS.to(scale.device)[groups.long()] * scale, shape, padding).to(codes.dtype)

    def bits_per_weight(self, scheme: QuantizationScheme, shape: tuple[int, int]) -> float:
        groups, weights = group_count(shape, scheme.group_size)[0], shape[0] * shape[1]
        return BITS + (SCALE_BITS * groups + 32 * -(-groups // SCALE_BLOCK) + 32) / weights

    def describe(self) -> Mapping[str, Any]:
        return {
            "name": self.name,
            "summary": self.summary,
            "grid": [round(level, 4) for level in LEVELS.tolist()],
            "bits": str(BITS),
            "scale": "8 bits: mean + code * step, a float32 step for 256 scales, a float32 mean for the tensor",
            "stored": " ".join((self.__doc__ or "").split()),
        }


def encoded_scales(
    groups: torch.Tensor, max_scale: torch.Tensor | float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes [groups] that gradients flow through, steps [blocks of scales] and mean [1] of the scales, float32."""
    factor = max_scale.reshape(-1) if isinstance(max_scale, torch.Tensor) else max_scale
    scale = groups.abs().amax(-1) * factor
    mean = scale.mean().reshape(1)
    steps = blocks_of(scale - mean).abs().amax(-1) / TOP
    # A step of zero stands for scales that are all the mean: their code is zero, whatever it is divided by.
    codes = round_ste(blocks_of(scale - mean) / steps.clamp(min=torch.finfo(steps.dtype).tiny).unsqueeze(-1))
    return codes.clamp(-TOP, TOP).flatten()[: len(scale)], steps, mean


def decoded_scales(codes: torch.Tensor, steps: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """The scales, float32 [groups, 1], never zero."""
    scale = blocks_of(codes.flatten().float()) * steps.unsqueeze(-1) + mean
    return scale.flatten()[: codes.numel()].clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(-1)


def blocks_of(scales: torch.Tensor) -> torch.Tensor:
    """One value for each scale, [scales], in blocks [blocks, 256], zeros at the end."""
    return F.pad(scales, (0, -len(scales) % SCALE_BLOCK)).reshape(-1, SCALE_BLOCK)


def nearest(x: torch.Tensor, v: torch.Tensor | float) -> tuple[torch.Tensor, torch.Tensor]:
    """The level nearest to each x, with the gradient as if nothing had been rounded, and its code; shaped like x."""
    levels = LEVELS.to(x.device)
    # What is no number goes to zero here, and stays what it is through the scale.
    x = x.nan_to_num(0.0)
    below = torch.bucketize(x.detach(), levels[1:-1], right=True)
    gap = (levels[1:] - levels[:-1])[below]
    # Weights beyond the last level get places beyond it, so that an offset does not bring them back.
    place = below + (x - levels[below]) / gap + v
    code = round_ste(place).clamp(0, len(LEVELS) - 1)
    index = code.detach().long()
    return levels[index] + gap * (code - code.detach()), index
