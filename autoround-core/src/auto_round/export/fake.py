# SPDX-License-Identifier: Apache-2.0
"""Format `fake`: the weights a quantized model computes with, stored at full precision. For research."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from auto_round.export.checkpoint import CheckpointFormat

if TYPE_CHECKING:
    import torch

    from auto_round.plan import Plan
    from auto_round.tuning.result import LayerResult

__all__ = ["FakeFormat"]


class FakeFormat(CheckpointFormat):
    """Takes every data type, one without a stored form included."""

    name = "fake"
    summary = "dequantized weights at full precision, for research"

    def pack(self, result: LayerResult) -> Mapping[str, torch.Tensor]:
        return {"weight": result.weight.T if result.layer.transposed else result.weight}

    def quantization_config(self, plan: Plan) -> dict[str, Any] | None:
        return None
