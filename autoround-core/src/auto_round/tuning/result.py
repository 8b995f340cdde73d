# SPDX-License-Identifier: Apache-2.0
"""What leaves the tuner."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from auto_round.data_type import Codes
    from auto_round.plan import LayerSpec
    from auto_round.tuning.latent import Latent

__all__ = ["BlockResult", "CacheResult", "LayerResult"]


@dataclass(frozen=True)
class LayerResult:
    """A finished layer; `weight`, [out_features, in_features] in the weight's dtype, is what runtimes compute with.

    Attributes:
        layer: what was planned for it.
        codes: its stored form, or None for a data type that has none.
        decoded: `weight`, where it is in memory; None where codes are decoded when it is asked for.
        frozen: what its static activations were frozen to; codes have it too, under other names.
        importance: sum of squares of each input channel over calibration, float32 [in_features]; None if not observed.
        tokens: how many tokens of the calibration reached it, None if nobody looked.
        error: what rounding changed of its output relative to all of it, both squared, as if inputs were independent;
            None where no token reached it.
        latent: where steps of the whole model go on; None where there are none to come.
    """

    layer: LayerSpec
    codes: Codes | None
    decoded: torch.Tensor | None
    frozen: Mapping[str, torch.Tensor] = field(default_factory=dict)
    importance: torch.Tensor | None = None
    tokens: int | None = None
    error: float | None = None
    latent: Latent | None = None

    @property
    def weight(self) -> torch.Tensor:
        """What the codes decode to, or the weight of a data type that has none."""
        if self.decoded is not None:
            return self.decoded
        assert self.codes is not None
        assert self.layer.data_type is not None
        return self.layer.data_type.decode(self.codes)

    def without_weight(self) -> LayerResult:
        """The same in less memory, where there are codes."""
        return self if self.codes is None else dataclasses.replace(self, decoded=None)


@dataclass(frozen=True)
class CacheResult:
    """What was found of the keys and values of one attention layer.

    Attributes:
        module: its name.
        key, value: what the data type's `freeze` returned for them.
    """

    module: str
    key: Mapping[str, torch.Tensor]
    value: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class BlockResult:
    """A finished part of the work: a block, layers of one that share an input, or layers outside the blocks.

    Attributes:
        name: the block's name; "" for layers outside the blocks.
        layers: its finished layers.
        loss_before, loss_after: mean squared error of its output with plain rounding and as it is now, on a fixed
            slice of the samples; None where nothing was tuned.
        kept_step: the step whose parameters were kept, None where nothing was tuned.
        unseen: names of layers that no token of the calibration reached, experts most likely: they have the data type's
            best start without importance, and share the range of their likes where activations are static.
        scarce: names of layers that so few tokens reached that tuning would only learn those by heart; they have the
            data type's best start and are not tuned.
        caches: scales of keys and values, where the plan asks for them.
        changed: parameters that no layer here stands for and that are not what they were, by full name.
        errors: of the layers, by name, once these are let go of.
        seconds: how long it took.
    """

    name: str
    layers: tuple[LayerResult, ...]
    loss_before: float | None = None
    loss_after: float | None = None
    kept_step: int | None = None
    unseen: tuple[str, ...] = ()
    scarce: tuple[str, ...] = ()
    caches: tuple[CacheResult, ...] = ()
    changed: Mapping[str, torch.Tensor] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
