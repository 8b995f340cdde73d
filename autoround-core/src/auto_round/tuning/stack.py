# SPDX-License-Identifier: Apache-2.0
"""Layers of equal shape on top of each other, quantized by one call: the experts of a block are many and small.

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

__all__ = ["LARGEST", "LayerStack", "renewed", "stacked", "stacks_in"]

LARGEST = 1 << 24
"""Weights of a stack: enough to make a call cheap, and few beside what all the experts of a block have."""


class LayerStack(TunableLinear):
    """Layers of one shape, scheme and data type as one of [layers * out_features, in_features].

    Their modules stay where they are and compute with their part of the weight, which is quantized once for each pass
    through the block. Where the weights lie one behind the other already, as those of fused experts do, nothing is
    copied; otherwise the layers are given views of the stack's copy.
    """

    def __init__(self, layers: Sequence[TunableLinear]) -> None:
        first, self._count = layers[0], len(layers)
        weight = _on_top([layer.weight for layer in layers])
        spec = replace(first.layer, shape=(weight.shape[0], weight.shape[1]), transposed=False, activation=None)
        fixed = {name: _together([layer.fixed[name] for layer in layers]) for name in first.fixed}
        linear = SimpleNamespace(weight=weight, bias=None)
        super().__init__(linear, spec, first.compute_dtype, weight.device, fixed)
        self.tuned = first.tuned
        self._layers = tuple(layers)
        self._parts: tuple[torch.Tensor, ...] | None = None
        for number, (layer, part) in enumerate(zip(layers, self.weight.chunk(self._count), strict=True)):
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

    def _part(self, number: int) -> torch.Tensor:
        if self._parts is None:
            self._parts = self.quantized_weight().to(self.compute_dtype).chunk(self._count)
        return self._parts[number]

    def _of_one(self, offers: Mapping[str, Any], number: int) -> dict[str, Any]:
        return {n: o.chunk(self._count)[number] if isinstance(o, torch.Tensor) else o for n, o in offers.items()}


def stacked(layers: Iterable[TunableLinear], block: str) -> list[TunableLinear]:
    """The layers of a block, those that can be put into stacks; what `tune_block` is to work with."""
    alike: dict[object, list[TunableLinear]] = {}
    for layer in layers:
        alike.setdefault(_kind(layer, block) or id(layer), []).append(layer)
    units: list[TunableLinear] = []
    for found in alike.values():
        most = max(1, LARGEST // found[0].weight.numel())
        for start in range(0, len(found), most):
            part = found[start : start + most]
            units += [LayerStack(part)] if len(part) > 1 else part
    return units


def stacks_in(layer: LayerSpec, block: str) -> bool:
    """Whether a layer may lie in a stack: one of an expert, a module that the model numbers within a block."""
    numbered = any(part.isdigit() for part in _holder(layer, block))
    return numbered and layer.data_type is not None and layer.data_type.stacks(layer.scheme, layer.shape)


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
    # The importance of inputs differs from layer to layer and has no row to lie on.
    if layer.shares or "imatrix" in layer.fixed or not stacks_in(spec, block):
        return None
    told = tuple((name, getattr(offer, "shape", offer)) for name, offer in layer.fixed.items())
    without = tuple("#" if part.isdigit() else part for part in _holder(spec, block))
    return without, spec.shape, weight.dtype, str(spec.scheme.to_dict()), id(layer.data_type), told


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
