# SPDX-License-Identifier: Apache-2.0
"""Kernels of few floating-point bits for a vLLM that has no GPU, so that what it reads out of such files can be seen.

vLLM has none for MXFP4, MXFP8 and NVFP4 on CPUs. It reads the files all the same, up to where it looks for a kernel,
and `register_linear_kernel` is its own way to be given one. Two are vLLM's emulations, which it has for GPUs; that of
MXFP4 needs another package, and the one here only decodes weights. So does that of MXFP8: neither rounds activations.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["register_emulations"]

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""What the codes without sign mean (OCP Microscaling Formats specification 1.0, section 5.3.3)."""


def register_emulations() -> None:
    """Offer the kernels to the vLLM of this process."""
    from vllm.model_executor.kernels.linear import register_linear_kernel
    from vllm.model_executor.kernels.linear.mxfp4.base import MxFp4LinearKernel
    from vllm.model_executor.kernels.linear.mxfp8.emulation import EmulationMxfp8LinearKernel
    from vllm.model_executor.kernels.linear.nvfp4.emulation import EmulationNvFp4LinearKernel
    from vllm.platforms import PlatformEnum

    class DecodedMxFp4(MxFp4LinearKernel):  # type: ignore[misc]
        @classmethod
        def is_supported(cls, compute_capability: int | None = None) -> tuple[bool, str | None]:  # noqa: ARG003
            return True, None

        @classmethod
        def can_implement(cls, config: Any) -> tuple[bool, str | None]:  # noqa: ARG003
            return True, None

        def process_weights_after_loading(self, layer: Any) -> None:
            layer.weight = nn.Parameter(mxfp4_weight(layer.weight, layer.weight_scale), requires_grad=False)

        def apply_weights(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
            return F.linear(x, layer.weight.to(x.dtype), bias)

    register_linear_kernel(DecodedMxFp4, PlatformEnum.CPU, "mxfp4")
    register_linear_kernel(EmulationMxfp8LinearKernel, PlatformEnum.CPU, "mxfp8")
    register_linear_kernel(EmulationNvFp4LinearKernel, PlatformEnum.CPU, "nvfp4")


def mxfp4_weight(packed: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """A weight in bfloat16.

    Args:
        packed: two codes a byte, the first in the low half, uint8 [out_features, in_features / 2].
        scale: E8M0 of each 32 in a row, uint8 [out_features, in_features / 32].
    """
    codes = torch.stack([packed & 15, packed >> 4], -1).flatten(-2).int()
    elements = torch.tensor([*E2M1, *(-value for value in E2M1)])[codes]
    return (elements * torch.exp2(scale.float() - 127).repeat_interleave(32, -1)).bfloat16()
