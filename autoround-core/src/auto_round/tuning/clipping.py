# SPDX-License-Identifier: Apache-2.0
"""A narrower range for static activations, where cutting off the largest inputs costs less than finer steps gain.

The range that was observed, times a factor f, is judged by the error of the answers of all layers that are fed the
same, each relative to its answers, with W' the rounded weight and x' the input within f times the range:

    E(f) = sum over layers of |W' x' - W x|^2 / |W x|^2
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from auto_round.calibration.observer import InputObserver
from auto_round.data_type.activation import ActivationQuantizer
from auto_round.run.ranks import Ranks
from auto_round.tuning.layer import TunableLinear
from auto_round.tuning.prepared import freeze_inputs, mates_of

__all__ = ["FACTORS", "clip_inputs"]

FACTORS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
"""What is tried; the first is what holds if nothing is better."""

TINY = 1e-30


@torch.no_grad()
def clip_inputs(tunables: Mapping[str, TunableLinear], observer: InputObserver, ranks: Ranks) -> dict[str, float]:
    """Choose the range of the static activations of layers that are prepared.

    Args:
        tunables: the layers of a block by name.
        observer: what was observed of their inputs; it has kept some of them.
        ranks: the processes that share the run; each judges by inputs it has kept.

    Returns:
        the factor of every layer with static activations that any kept input is of.
    """
    layers = {name: tunable.layer for name, tunable in tunables.items()}
    chosen: dict[str, float] = {}
    for name, tunable in tunables.items():
        mates = mates_of(tunable.layer, layers)
        if not tunable.layer.static_activations or mates[0] != name or name not in observer.tokens:
            continue
        kept = observer.some.get(name)
        errors = torch.zeros(len(FACTORS))
        if kept is not None:
            errors = _errors(kept, [tunables[mate] for mate in mates], observer.lows[name], observer.highs[name])
        errors = ranks.add_up(errors)
        factor = FACTORS[int(errors.argmin())]
        if factor != 1.0:
            freeze_inputs(
                [tunables[mate] for mate in mates], observer.lows[name] * factor, observer.highs[name] * factor
            )
        chosen |= dict.fromkeys(mates, factor)
    return chosen


def _errors(x: torch.Tensor, layers: Sequence[TunableLinear], low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """E of every factor, float32 [factors]; the least comes first where several are equal.

    Args:
        x: inputs [tokens, in_features].
        low, high: the range that was observed.
    """
    spec, wide = layers[0].layer, x.float()
    assert spec.activation is not None
    weights = [(layer.weight.float(), layer.quantized_weight().float()) for layer in layers]
    answers = [wide @ exact.T for exact, _ in weights]
    errors = []
    for factor in FACTORS:
        frozen = spec.activation.freeze(low * factor, high * factor, spec.scheme)
        seen = ActivationQuantizer(spec.activation, spec.scheme, frozen)(x).float()
        wrong = [
            (seen @ rounded.T - answer).square().sum() / answer.square().sum().clamp(min=TINY)
            for (_, rounded), answer in zip(weights, answers, strict=True)
        ]
        errors.append(torch.stack(wrong).sum())
    return torch.stack(errors).cpu()
