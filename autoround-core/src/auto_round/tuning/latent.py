# SPDX-License-Identifier: Apache-2.0
"""What a finished layer was before it was rounded: where steps of the whole model go on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from auto_round.data_type import Bounds
    from auto_round.tuning.layer import TunableLinear

__all__ = ["Latent", "latent_of"]


@dataclass(frozen=True, eq=False)
class Latent:
    """A layer whose rounding can still change.

    Attributes:
        original: the weight that the original model computes with, [out_features, in_features].
        weight: what is rounded, shaped and typed likewise: the same tensor, or one that makes up for what was rounded
            before it.
        fixed: what else its data type is offered.
        learnt: `v`, `min_scale`, `max_scale` as far as the data type learns them, float32; none where the layer is to
            stay as it is.
        bounds: of those.
    """

    original: torch.Tensor
    weight: torch.Tensor
    fixed: Mapping[str, Any] = field(default_factory=dict)
    learnt: Mapping[str, torch.Tensor] = field(default_factory=dict)
    bounds: Mapping[str, Bounds] = field(default_factory=dict)


def latent_of(tunable: TunableLinear) -> Latent:
    """What a layer is before it is rounded, in memory of its own: its weight's will be overwritten."""
    original = tunable.original.clone()
    weight = original if torch.equal(tunable.weight, original) else tunable.weight.clone()
    learnt = {name: parameter.detach().clone() for name, parameter in tunable.learnt.items()}
    return Latent(original, weight, dict(tunable.fixed), learnt, {name: tunable.tuned[name] for name in learnt})
