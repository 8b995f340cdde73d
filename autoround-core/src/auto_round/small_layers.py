# SPDX-License-Identifier: Apache-2.0
"""Gates and other small layers of odd shapes: not worth that a runtime refuses the whole model for them."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING

from auto_round.runtimes import computed_with, misfit

if TYPE_CHECKING:
    from auto_round.export import OutputFormat
    from auto_round.plan import LayerSpec

__all__ = ["Refusals", "small_misfits"]

Refusals = Mapping[tuple[str, str], str | None]
"""By the names of a layer and a format: why the format cannot hold the layer, None if it can."""

SMALL = 0.01
"""Share of a block's weights that may stay at full precision without being asked for: a few MB in a GB."""


def small_misfits(
    layers: Sequence[LayerSpec], formats: Sequence[OutputFormat], refusals: Refusals, named: Container[str]
) -> dict[str, str]:
    """Names of the layers that a format or one of its runtimes cannot take, and why, if they are next to nothing.

    Next to nothing is less than a hundredth of the weights of their block, all of them together. More than that is for
    the format to refuse and for a note to tell; so is what the user named, and what a runtime computes as one with a
    layer that is quantized.

    Args:
        layers: as planned before formats were asked.
        refusals: of every layer that is to be quantized.
        named: layers for which the user said what to do.
    """
    reasons = {
        layer.name: reason
        for layer in layers
        if layer.quantized and layer.block is not None and layer.name not in named
        for reason in [_reason(layer, formats, refusals)]
        if reason
    }
    weights: dict[str | None, int] = {}
    odd: dict[str | None, int] = {}
    for layer in layers:
        count = layer.shape[0] * layer.shape[1]
        weights[layer.block] = weights.get(layer.block, 0) + count
        if layer.name in reasons:
            odd[layer.block] = odd.get(layer.block, 0) + count
    return {
        layer.name: reasons[layer.name]
        for layer in layers
        if layer.name in reasons
        and odd[layer.block] < SMALL * weights[layer.block]
        and all(mate in reasons for mate in computed_with(layer))
    }


def _reason(layer: LayerSpec, formats: Sequence[OutputFormat], refusals: Refusals) -> str | None:
    for output_format in formats:
        refusal = refusals[layer.name, output_format.name]
        if refusal:
            return f"format {output_format.name} cannot hold it: {refusal}"
        missed = misfit(layer, output_format)
        if missed:
            return missed
    return None
