# SPDX-License-Identifier: Apache-2.0
"""Layers of as many inputs on top of each other, quantized by one call: experts are many, and small models have small
layers, for which what surrounds a computation takes longer than it does.

Nothing about the result changes: a data type that lets its matrices be stacked promises the same bits. Learnt offsets,
steps and bounds work element by element, and an expert without a token has a gradient of zero, whose sign is zero.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from auto_round.plan import LayerSpec
from auto_round.tuning.layer import TunableLinear

__all__ = ["LARGEST", "SMALL", "LayerStack", "renewed", "stacked", "stacks_in"]

LARGEST = 1 << 24
"""Weights of a stack: enough to make a call cheap, and few beside what all the experts of a block have."""


SMALL = 1 << 20
"""Weights of a layer that is no expert; beyond, a call of its own costs nothing to speak of, and a copy would."""


class LayerStack(TunableLinear):
    """Layers of one scheme and data type as one of [all their out_features, in_features].

    Their modules stay where they are and compute with their part of the weight, which is quantized once for each pass
    through the block. Where the weights lie one behind the other already, as those of fused experts do, nothing is
    copied; otherwise the layers are given views of the stack's copy.
    """

    def __init__(self, layers: Sequence[TunableLinear]) -> None:
        first, weight = layers[0], _on_top([layer.weight for layer in layers])
        self._rows = [layer.weight.shape[0] for layer in layers]
        spec = replace(first.layer, shape=(weight.shape[0], weight.shape[1]), transposed=False, activation=None)
        fixed = {name: _together([layer.fixed[name] for layer in layers]) for name in first.fixed}
        linear = SimpleNamespace(weight=weight, bias=None)
        super().__init__(linear, spec, first.compute_dtype, weight.device, fixed)
        self.tuned = first.tuned
        self._layers = tuple(layers)
        self._parts: tuple[torch.Tensor, ...] | None = None
        for number, (layer, part) in enumerate(zip(layers, self.weight.split(self._rows), strict=True)):
            layer.lie_in(part, self._of_one(fixed, number), functools.partial(self._part, number))

    @property
    def members(self) -> tuple[TunableLinear, ...]:
        return self._layers

    def renew(self) -> None:
        """Forget the quantized weight: what is learnt has changed, or nobody needs it any more."""
        self._parts = None

    def hand_back(self) -> None:
        """Give each layer its part of what was learnt."""
        learnt = {name: parameter.detach() for name, parameter in self.learnt.items()}
        for number, layer in enumerate(self._layers):
            layer.stand_alone(self._of_one(learnt, number))

    @torch.no_grad()
    def keep(self, learnt: Mapping[str, torch.Tensor] | None = None) -> None:
        assert learnt is None
        learnt = dict(self.learnt)
        for number, layer in enumerate(self._layers):
            layer.keep(self._of_one(learnt, number))

    def _part(self, number: int) -> torch.Tensor:
        if self._parts is None:
            self._parts = self.quantized_weight().to(self.compute_dtype).split(self._rows)
        return self._parts[number]

    def _of_one(self, offers: Mapping[str, Any], number: int) -> dict[str, Any]:
        return {n: self._split(o)[number] if isinstance(o, torch.Tensor) else o for n, o in offers.items()}

    def _split(self, offer: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """An offer for all in those for each: as many groups, or blocks, for as many rows."""
        return offer.split([offer.shape[0] * rows // sum(self._rows) for rows in self._rows])


def stacked(layers: Iterable[TunableLinear], block: str) -> list[TunableLinear]:
    """The layers of a block, those that can be put into stacks; what `tune_block` is to work with."""
    alike: dict[object, list[TunableLinear]] = {}
    for layer in layers:
        alike.setdefault(_kind(layer, block) or id(layer), []).append(layer)
    units: list[TunableLinear] = []
    for found in alike.values():
        parts: list[list[TunableLinear]] = [[]]
        for layer in found:
            if sum(other.weight.numel() for other in parts[-1]) + layer.weight.numel() > LARGEST:
                parts.append([])
            parts[-1].append(layer)
        for part in filter(None, parts):
            units += [LayerStack(part)] if len(part) > 1 else part
    return units


def stacks_in(layer: LayerSpec, block: str) -> bool:
    """Whether a layer may lie in a stack: a small one, or one of an expert, a module numbered within its block."""
    numbered = any(part.isdigit() for part in _holder(layer, block))
    small = layer.shape[0] * layer.shape[1] <= SMALL
    return (numbered or small) and layer.data_type is not None and layer.data_type.stacks(layer.scheme, layer.shape)


@contextmanager
def renewed(block: nn.Module, units: Iterable[TunableLinear]) -> Iterator[None]:
    """Quantize the stacks among these anew for every pass through the block; afterwards they hand back."""
    stacks = [unit for unit in units if isinstance(unit, LayerStack)]

    def renew(*_call: object) -> None:
        for stack in stacks:
            stack.renew()

    hooks: list[Callable[..., Any]] = [block.register_forward_pre_hook, block.register_forward_hook]
    handles = [hook(renew) for hook in hooks if stacks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for stack in stacks:
            stack.hand_back()


def _kind(layer: TunableLinear, block: str) -> object:
    """What layers of one stack have in common, None for a layer that goes into none."""
    spec, weight = layer.layer, layer.weight
    if not layer.rows_alone or not stacks_in(spec, block):
        return None
    rows = weight.shape[0]
    told = tuple((n, (o.shape[0] / rows, o.shape[1:]) if _has_rows(o) else o) for n, o in layer.fixed.items())
    return weight.shape[1], weight.dtype, str(spec.scheme.to_dict()), id(layer.data_type), told


def _has_rows(offer: object) -> bool:
    return isinstance(offer, torch.Tensor) and offer.dim() > 0


def _holder(layer: LayerSpec, block: str) -> list[str]:
    """The parts of the name of the module that a layer lies in, below the block."""
    return layer.name.removeprefix(f"{block}.").split(".")[:-1]


def _on_top(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Matrices as one, a view of them where they lie one behind the other in one tensor."""
    first = weights[0]
    follows = all(
        w.is_contiguous() and w.data_ptr() == first.data_ptr() + n * first.nbytes for n, w in enumerate(weights)
    )
    if follows and len({w.untyped_storage().data_ptr() for w in weights}) == 1:
        return first.as_strided((len(weights) * first.shape[0], first.shape[1]), (first.shape[1], 1))
    return torch.cat(list(weights))


def _together(offers: Sequence[Any]) -> Any:
    return torch.cat(list(offers)) if isinstance(offers[0], torch.Tensor) else offers[0]
