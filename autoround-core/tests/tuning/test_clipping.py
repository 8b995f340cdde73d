# SPDX-License-Identifier: Apache-2.0
"""Ranges of static activations narrower than what was observed: chosen by what the layers answer, told to the file."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from auto_round import AutoRound, DataType, QuantizationScheme
from auto_round.calibration.observer import InputObserver
from auto_round.data_type.rounding import round_ste
from auto_round.plan import LayerSpec
from auto_round.run.ranks import Ranks
from auto_round.tuning.clipping import FACTORS, clip_inputs
from auto_round.tuning.layer import TunableLinear

STATIC = QuantizationScheme(
    bits=8, group_size=-1, data_type="sevens", act_bits=4, act_data_type="sevens", act_dynamic=False
)


class Sevens(DataType):
    """Seven steps to either side of zero for activations, as many as one likes for weights: those stay."""

    name = "sevens"
    tuned = {}  # noqa: RUF012 - a test

    def quant_tensor(self, tensor, init_scale=None):
        if init_scale is None:
            return tensor, None, None
        return (round_ste(tensor / init_scale).clamp(-7, 7) * init_scale).to(tensor.dtype), init_scale, None

    def freeze(self, low, high, scheme):
        return {"init_scale": torch.maximum(-low, high) / 7}


SEVENS = Sevens()


def layers_and_observer(x, weights):
    """Layers of one input, and what was observed of it."""
    names = tuple(f"layer{n}" for n in range(len(weights)))
    linears, tunables = {}, {}
    for name, weight in zip(names, weights, strict=True):
        linears[name] = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        linears[name].weight.data = weight
        spec = LayerSpec(name, tuple(weight.shape), torch.float32, "b", False, False, STATIC, SEVENS, SEVENS, names)
        tunables[name] = TunableLinear(linears[name], spec, torch.float32, torch.device("cpu"))
    observer = InputObserver(linears, (), set(names), keep=True)
    with observer.watching():
        for linear in linears.values():
            linear(x)
    for name, tunable in tunables.items():
        tunable.freeze_activations(observer.lows[name], observer.highs[name])
    return tunables, observer


def test_the_factor_is_the_best_of_those_tried_and_mates_have_one():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 500, 16, generator=generator)
    x[0, 0, 0] = 20.0  # an outlier in eight thousand
    weights = [torch.randn(8, 16, generator=generator) for _ in range(2)]
    tunables, observer = layers_and_observer(x, weights)
    chosen = clip_inputs(tunables, observer, Ranks())

    def error(factor):
        step = 20.0 * factor / 7
        seen = (x / step).round().clamp(-7, 7) * step
        return sum(((seen - x) @ w.T).square().sum() / (x @ w.T).square().sum() for w in weights)

    best = min(FACTORS, key=error)
    assert best < 0.5  # or this test tells nothing
    assert chosen == {"layer0": best, "layer1": best}
    for tunable in tunables.values():
        seen = tunable.as_seen(x)
        assert torch.allclose(seen.max(), torch.tensor(20.0 * best))


def test_a_range_that_is_needed_stays():
    """Inputs of two sizes, every one of them on the grid: less of it would only cost."""
    x = torch.randint(-7, 8, (1, 100, 16), generator=torch.Generator().manual_seed(0)).float()
    tunables, observer = layers_and_observer(x, [torch.eye(16)])
    assert clip_inputs(tunables, observer, Ranks()) == {"layer0": 1.0}
    assert torch.equal(tunables["layer0"].as_seen(x), x)


def test_no_input_no_choice():
    x = torch.randn(1, 10, 16)
    tunables, observer = layers_and_observer(x, [torch.eye(16)])
    observer.tokens.clear()  # as for an expert that no token was sent to
    assert clip_inputs(tunables, observer, Ranks()) == {}
    dynamic = dataclasses.replace(tunables["layer0"].layer, scheme=STATIC.replace(act_dynamic=True))
    tunables["layer0"].layer = dynamic
    observer.tokens["layer0"] = 10
    assert clip_inputs(tunables, observer, Ranks()) == {}


@pytest.mark.slow
@pytest.mark.parametrize("iters", [0, 2])
def test_the_file_has_what_was_chosen(model_dir, registry, tokens, tmp_path, iters):
    scheme = QuantizationScheme(
        bits=4, group_size=32, data_type="steps", act_bits=4, act_group_size=0, act_data_type="steps", act_dynamic=False
    )
    found = {}
    for recipe in ("published", "best"):
        out = tmp_path / recipe
        job = AutoRound(
            model_dir, scheme=scheme, dataset=tokens, registry=registry, recipe=recipe, iters=iters, nsamples=8,
            batch_size=4, verbose=False,
        )  # fmt: skip
        job.quantize_and_save(out, format="auto_round")
        found[recipe] = {n: t for n, t in load_file(out / "model.safetensors").items() if "input_init_scale" in n}
    names = [n for n in found["best"] if "layers.0" in n]  # a later block's inputs differ for other reasons
    factors = [float(found["best"][n] / found["published"][n]) for n in names]
    assert len(names) == 7
    assert min(factors) < 0.95
