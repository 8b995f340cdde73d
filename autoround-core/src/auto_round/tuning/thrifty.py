# SPDX-License-Identifier: Apache-2.0
"""A layer that keeps nothing of its rounded weight from the forward pass to the backward pass, but rounds it again.

What a step then needs for a layer beyond its weight and offsets is there while this layer's turn lasts, and gradients
of offsets only for some rows at a time. The same bits come out: the products are those that torch's own backward pass
of a linear layer has, and pieces are cut where the data type promises that rows do not care (`DataType.stacks`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from auto_round.tuning.layer import TunableLinear

__all__ = ["Piece", "pieces_of", "rounded_again"]

WEIGHTS = 1 << 21
"""Of a piece: large enough that calls cost nothing to speak of."""

TALL = 128
"""Rows of a piece are a multiple of this, which blocks of weights are not cut by; data types are asked nevertheless."""


@dataclass(frozen=True, eq=False)
class Piece:
    """Some rows of a layer.

    Attributes:
        rows: which.
        weight, fixed: what the layer has for them, views.
        learnt: leaves that share memory with what the layer learns.
    """

    rows: slice
    weight: torch.Tensor
    fixed: Mapping[str, Any]
    learnt: Mapping[str, nn.Parameter]


def pieces_of(layer: TunableLinear) -> list[Piece]:
    """A layer with learnt parameters in pieces, or in one where its data type does not stack."""
    count = len(layer.weight)

    def cut(offer: Any, part: slice) -> Any:
        whole = not isinstance(offer, torch.Tensor) or not offer.dim() or len(offer) * part.stop % count
        return offer if whole else offer[len(offer) * part.start // count : len(offer) * part.stop // count]

    return [
        Piece(
            part,
            layer.weight[part],
            {name: cut(offer, part) for name, offer in layer.fixed.items()},
            # `data`, because a step of one piece must not look like a write to what another one has saved.
            {name: nn.Parameter(cut(parameter.data, part)) for name, parameter in layer.learnt.items()},
        )
        for part in _parts(layer)
    ]


def _parts(layer: TunableLinear) -> list[slice]:
    """Which rows go together."""
    rows, columns = layer.weight.shape
    height = max(TALL, WEIGHTS // columns // TALL * TALL)
    parts = [slice(start, min(start + height, rows)) for start in range(0, rows, height)]
    stack = all(layer.data_type.stacks(layer.layer.scheme, (part.stop - part.start, columns)) for part in parts)
    return parts if stack and layer.rows_alone else [slice(0, rows)]


def rounded_again(layer: TunableLinear, x: torch.Tensor) -> torch.Tensor:
    """The layer's answer to an input as the quantized model sees it; gradients go to its pieces."""
    answer: torch.Tensor = _RoundedAgain.apply(x, torch.zeros((), requires_grad=True), layer)
    return answer


class _RoundedAgain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, _learning: torch.Tensor, layer: TunableLinear) -> torch.Tensor:
        ctx.layer = layer
        ctx.save_for_backward(x)
        return F.linear(x, layer.quantized_weight().to(layer.compute_dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, None, None]:
        layer: TunableLinear = ctx.layer
        (x,), (by_answer,) = ctx.saved_tensors, gradients
        by_input = by_answer @ layer.quantized_weight().to(layer.compute_dtype) if ctx.needs_input_grad[0] else None
        by_weight = by_answer.reshape(-1, by_answer.shape[-1]).T @ x.reshape(-1, x.shape[-1])
        with torch.enable_grad():
            for piece in layer.pieces:
                rounded = layer.rounded_piece(piece).to(layer.compute_dtype)
                rounded.backward(by_weight[piece.rows])
        return by_input, None, None
