# SPDX-License-Identifier: Apache-2.0
"""Layers before the first step and after the last: what they are told, and what becomes of the model's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from auto_round.calibration.observer import InputObserver
from auto_round.data_type.activation import ActivationQuantizer
from auto_round.errors import CalibrationError
from auto_round.model.structure import without_numbers
from auto_round.plan import LayerSpec
from auto_round.tuning.latent import latent_of
from auto_round.tuning.layer import TunableLinear
from auto_round.tuning.result import LayerResult

if TYPE_CHECKING:
    from auto_round.tuning.options import TuningOptions

__all__ = [
    "finish",
    "freeze_inputs",
    "in_place",
    "install",
    "mates_of",
    "observer_of",
    "prepare",
    "put",
    "put_weight",
    "relative_error",
    "wants_importance",
]

PIECE = 1 << 18
"""Weights compared at a time: float32 copies of them stay in a CPU's caches."""


def wants_importance(layer: LayerSpec, options: TuningOptions) -> bool:
    """Whether the importance of a layer's inputs must be observed."""
    assert layer.data_type is not None
    return options.search and "imatrix" in layer.data_type.statistics(layer.scheme)


def observer_of(modules: Mapping[str, nn.Module], layers: Sequence[LayerSpec], options: TuningOptions) -> InputObserver:
    """Watches layers for what their data types want to know."""
    importance = {s.name for s in layers if wants_importance(s, options)}
    return InputObserver(modules, importance, {s.name for s in layers if s.static_activations}, keep=options.improved)


def mates_of(layer: LayerSpec, layers: Mapping[str, LayerSpec]) -> list[str]:
    """The layers that decide together with one, because a runtime fuses them, itself among them."""
    return [n for n in layer.shares if n in layers and _alike(layers[n], layer)] or [layer.name]


def _alike(one: LayerSpec, other: LayerSpec) -> bool:
    return one.scheme == other.scheme and one.data_type is other.data_type


def prepare(tunables: Mapping[str, TunableLinear], observer: InputObserver | None, options: TuningOptions) -> None:
    """Everything a layer is told before it is tuned or rounded."""
    layers = {name: tunable.layer for name, tunable in tunables.items()}
    for name, tunable in tunables.items():
        if tunable.layer.static_activations:
            low, high = _range_of(name, observer)
            tunable.freeze_activations(low, high)
        mates = mates_of(tunable.layer, layers)
        if mates[0] == name:  # the first one of a set asks for all of them
            tunable.share_with([tunables[n] for n in mates])
        elif tunable.activation is not None:
            tunable.activation = tunables[mates[0]].activation
    if options.iters or options.e2e_iters or options.compensates:  # what is rounded once finds it by itself as fast
        for tunable in tunables.values():
            tunable.tell_range()
    if options.search:
        for name, tunable in tunables.items():
            tunable.search(observer.sums.get(name) if observer is not None else None)


def freeze_inputs(mates: Sequence[TunableLinear], low: torch.Tensor, high: torch.Tensor) -> None:
    """Fix another range for the static activations of layers that are fed the same, float32 scalars."""
    for mate in mates:
        mate.freeze_activations(low, high)
    mates[0].share_input(mates)


def finish(tunable: TunableLinear, observer: InputObserver | None, *, latent: bool = False) -> LayerResult:
    """The layer's result.

    Args:
        latent: remember what it was before it was rounded.

    Raises:
        WrittenIntoError: its data type wrote into the original weight.
    """
    result = tunable.finish()
    tunable.check_weight()
    name = tunable.layer.name
    importance = None if observer is None else observer.sums.get(name)
    tokens = None if observer is None else observer.tokens.get(name, 0)
    error = None if tokens == 0 else relative_error(tunable.original, result.weight, importance)
    kept = latent_of(tunable) if latent else None
    return dataclasses.replace(result, importance=importance, tokens=tokens, error=error, latent=kept)


def relative_error(weight: torch.Tensor, rounded: torch.Tensor, importance: torch.Tensor | None) -> float:
    """sum(h (W' - W)^2) / sum(h W^2), h the importance of an input channel or 1; 0 for a weight of zeros.

    Args:
        weight, rounded: [out_features, in_features].
        importance: float32 [in_features].
    """
    root = None if importance is None else importance.sqrt()
    whole = wrong = 0.0
    rows = max(1, PIECE // weight.shape[1])
    for before, after in zip(weight.split(rows), rounded.split(rows), strict=True):
        exact = before.to(torch.float32, copy=True)
        off = after.to(torch.float32, copy=True).sub_(exact)
        if root is not None:
            exact.mul_(root)
            off.mul_(root)
        wrong += off.flatten().dot(off.flatten()).item()
        whole += exact.flatten().dot(exact.flatten()).item()
    return wrong / whole if whole > 0 else 0.0


def install(linear: Any, result: LayerResult) -> None:
    """Give a plain layer the weight every runtime will see, and let it see its input as they will."""
    put_weight(linear, result)
    layer = result.layer
    if layer.activation is not None:
        frozen = result.frozen if layer.static_activations else None
        linear.register_forward_pre_hook(_SeenThrough(ActivationQuantizer(layer.activation, layer.scheme, frozen)))


@torch.no_grad()
def put_weight(linear: Any, result: LayerResult) -> None:
    """Give a plain layer the weight every runtime will see."""
    linear.weight.copy_(result.weight.T if result.layer.transposed else result.weight)


def put(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Put modules into the places of others, by the names they have below the model or block."""
    for name, module in modules.items():
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, module)


@contextmanager
def in_place(model: nn.Module, modules: Mapping[str, nn.Module], others: Mapping[str, nn.Module]) -> Iterator[None]:
    """These modules in the places of others, which are back afterwards, whatever happens."""
    put(model, modules)
    try:
        yield
    finally:
        put(model, others)


class _SeenThrough:
    """A hook before a layer; no closure, so that models can be pickled."""

    def __init__(self, activation: ActivationQuantizer) -> None:
        self._activation = activation

    def __call__(self, _module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (self._activation(args[0]), *args[1:])


def _range_of(name: str, observer: InputObserver | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The range of a layer's input; that of its likes for an expert that no token was sent to."""
    if observer is not None:
        template = without_numbers(name)
        seen = [name] if name in observer.lows else [n for n in observer.lows if without_numbers(n) == template]
        if seen:
            low = torch.stack([observer.lows[n] for n in seen]).min()
            high = torch.stack([observer.highs[n] for n in seen]).max()
            if not bool(torch.isfinite(low) & torch.isfinite(high)):
                raise CalibrationError(
                    f"layer {name}, whose activations are static, got NaN or infinite inputs: the model cannot compute "
                    "the calibration data; try compute_dtype=torch.float32."
                )
            return low, high
    raise CalibrationError(
        f"no calibration token reached layer {name}, whose activations are static: pass more text, or other text."
    )
