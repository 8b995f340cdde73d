# SPDX-License-Identifier: Apache-2.0
"""The improved recipe's first step, from the formula to the file: loud channels are made equal, and nothing is lost."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from auto_round import AutoRound
from auto_round.errors import UnknownOptionError
from auto_round.inference.packed_linear import PackedLinear
from auto_round.tuning.equalise import MOST, Trial, equalise, exponents_for
from auto_round.tuning.options import TuningOptions
from auto_round.tuning.rescaling import Rescaling

pytestmark = pytest.mark.slow

RUN = {"nsamples": 8, "batch_size": 4, "verbose": False}
CPU = torch.device("cpu")


def test_exponents_by_hand():
    inputs, weights = torch.tensor([1.0, 16.0, 1.0, 1.0, 1.0]), torch.tensor([1.0, 1.0, 1 / 4, 1.0, 1.0])
    assert exponents_for(inputs, weights, 1.0).tolist() == [0, 4, 0, 0, 0]  # inputs are divided by 16
    assert exponents_for(inputs, weights, 0.0).tolist() == [0, 0, 2, 0, 0]  # weights are multiplied by 4
    assert exponents_for(inputs, weights, 0.5).tolist() == [0, 2, 1, 0, 0]


@pytest.mark.parametrize("part", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_what_was_scaled_before_is_scaled_back_whatever_the_part(part):
    """A channel whose inputs are 2^k times as large and weights 2^k times as small gets k more."""
    generator = torch.Generator().manual_seed(0)
    inputs, weights = torch.rand(2, 64, generator=generator) + 0.5
    planted = torch.zeros(64)
    planted[[3, 20, 40]] = torch.tensor([-4.0, 3.0, 5.0])
    plain = exponents_for(inputs, weights, part)
    scaled = exponents_for(inputs * planted.exp2(), weights / planted.exp2(), part)
    # Three channels may move the median of all by a channel's distance to the next one, and rounding by one step.
    assert (scaled - plain - planted).abs().max() <= 1
    assert torch.equal((scaled - plain)[planted != 0], planted[planted != 0])


def test_channels_that_are_dead_stay():
    assert exponents_for(torch.tensor([0.0, 1.0, 8.0]), torch.tensor([1.0, 0.0, 1.0]), 0.5).tolist() == [0, 0, 0]
    assert exponents_for(torch.zeros(2), torch.ones(2), 0.5).tolist() == [0, 0]
    assert exponents_for(torch.tensor([1.0, 1.0, 1e30]), torch.ones(3), 1.0).tolist() == [0, 0, MOST]


class Pair(nn.Module):
    """A gain and a layer that reads it."""

    def __init__(self, dtype):
        super().__init__()
        self.gain, self.reader = nn.LayerNorm(4, bias=False, dtype=dtype), nn.Linear(4, 4, bias=False, dtype=dtype)
        self.requires_grad_(False)


PLACE = Rescaling("gain", {"reader": torch.arange(4)})


def test_digits_are_not_lost_in_float16():
    """A weight of 2^-14 divided by 2^12 is no float16 any more; multiplied by 2^12 it is one."""
    pair = Pair(torch.float16)
    pair.gain.weight.copy_(torch.tensor([1.0, 1.0, 3 * 2.0**-14, 1.0]))
    before = [p.clone() for p in pair.parameters()]
    trial = Trial([pair], {}, lambda _observer: None, lambda: 0.0, TuningOptions(), CPU, torch.float16)
    assert not trial.scale(PLACE, torch.tensor([0.0, 0.0, 12.0, 0.0]))
    assert all(torch.equal(p, old) for p, old in zip(pair.parameters(), before, strict=True))
    assert trial.scale(PLACE, torch.tensor([0.0, 0.0, -4.0, 0.0]))
    assert pair.gain.weight[2] == 3 * 2.0**-10


def test_a_place_without_planned_readers_is_passed_by():
    pair = Pair(torch.float32)
    trial = Trial([pair], {}, lambda _observer: None, lambda: 0.0, TuningOptions(), CPU, torch.float32)
    assert equalise([PLACE], trial) == []


PLANTED = (3, 17)


@pytest.fixture
def loud_dir(model_dir):
    """The shared small model with two channels of each norm scaled up, and the weights that read them down."""
    tensors = load_file(model_dir / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("layernorm.weight"):
            tensor[list(PLANTED)] *= 32
        elif any(part in name for part in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")):
            tensor[:, list(PLANTED)] /= 32
    save_file(tensors, model_dir / "model.safetensors", metadata={"format": "pt"})
    return model_dir


def losses(job):
    return sum(block.loss_before for block in job.report.blocks)


def run(directory, registry, tokens, **options):
    return AutoRound(directory, scheme="STEPS4", dataset=tokens, registry=registry, **{**RUN, "iters": 3, **options})


def test_planted_channels_are_found_and_scaled_back(loud_dir, registry, tokens):
    original = AutoModelForCausalLM.from_pretrained(loud_dir, dtype="auto")
    plain, best = (run(loud_dir, registry, tokens, recipe=recipe) for recipe in ("published", "best"))
    plain.quantize()
    model, _ = best.quantize()
    for name, gain in model.named_parameters():
        if name.endswith("layernorm.weight"):
            factors = original.get_parameter(name) / gain
            assert bool((factors.log2() == factors.log2().round()).all()), name
            rest = torch.ones(len(gain), dtype=torch.bool)
            rest[list(PLANTED)] = False
            assert factors[list(PLANTED)].min() > 4 * factors[rest].max(), name
    # Where two channels in 32 are 32 times too small, rounding nearly loses them.
    assert losses(best) < 0.7 * losses(plain)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("iters", [0, 3])
def test_what_is_loaded_is_what_was_tuned(loud_dir, registry, tokens, tmp_path, low_cpu_mem_usage, iters):
    out, options = tmp_path / "out", {"recipe": "best", "iters": iters}
    job = run(loud_dir, registry, tokens, low_cpu_mem_usage=low_cpu_mem_usage, **options)
    job.quantize_and_save(out, format="auto_round,fake")
    tuned, _ = run(loud_dir, registry, tokens, **options).quantize()
    # Format fake holds what every weight stands for, so transformers alone can tell whether all of it was written.
    loaded = AutoModelForCausalLM.from_pretrained(out / "fake", dtype="auto")
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, tuned(tokens).logits)
    stored = load_file(out / "auto_round" / "model.safetensors")
    was = load_file(loud_dir / "model.safetensors")
    name = "model.layers.1.input_layernorm.weight"
    assert stored[name].dtype == was[name].dtype
    assert not torch.equal(stored[name], was[name])
    assert torch.equal(stored["model.norm.weight"], was["model.norm.weight"])


def test_saving_later_saves_what_was_changed(loud_dir, registry, tokens, tmp_path):
    job = run(loud_dir, registry, tokens, recipe="best")
    tuned, _ = job.quantize()
    job.save_quantized(tmp_path / "out", format="fake")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, tuned(tokens).logits)


@pytest.mark.parametrize("architecture", ["llama", "tied", "gpt2", "gemma3", "qwen3_moe", "mixtral", "gpt_oss"])
def test_every_architecture_loads_as_it_was_in_memory(stored, architecture, registry, tokens, tmp_path):
    options = {"bits": 3, "group_size": 16, "recipe": "best", "iters": 2, "low_cpu_mem_usage": True}
    run(stored(architecture), registry, tokens, **options).quantize_and_save(tmp_path / "out", format="fake")
    tuned, _ = run(stored(architecture), registry, tokens, **options).quantize()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    for name, tensor in loaded.state_dict().items():
        if name in tuned.state_dict():
            assert torch.equal(tensor, tuned.state_dict()[name]), name


@pytest.mark.parametrize("architecture", ["mixtral", "gpt_oss"])
def test_experts_that_files_call_otherwise_load_as_they_were_in_memory(
    stored, architecture, installed, tokens, tmp_path
):
    options = {"bits": 3, "group_size": 16, "recipe": "best", "iters": 2, "low_cpu_mem_usage": True}
    run(stored(architecture), installed, tokens, **options).quantize_and_save(tmp_path / "out")
    tuned, _ = run(stored(architecture), installed, tokens, **options).quantize()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    packed = {name: module for name, module in loaded.named_modules() if isinstance(module, PackedLinear)}
    assert any(".experts." in name for name in packed)
    layers = [layer.name for layer in run(stored(architecture), installed, tokens, **options).plan().quantized]
    for name, (called, module) in zip(layers, packed.items(), strict=True):  # experts' layers as files call them
        assert name.rpartition(".")[0] == called.rpartition(".")[0]
        assert torch.equal(module.decode(module.dtype), tuned.get_submodule(name).weight), name


def test_layers_that_stay_are_scaled_too_and_written(loud_dir, registry, tokens, tmp_path):
    """One of three layers that read a gain is left at full precision: its new columns must be in the file."""
    options = {"recipe": "best", "layer_config": {"model.layers.1.self_attn.k_proj": {"bits": 16}}}
    tuned, _ = run(loud_dir, registry, tokens, **options).quantize_and_save(tmp_path / "out", format="fake")
    name = "model.layers.1.self_attn.k_proj.weight"
    stored, was = (load_file(folder / "model.safetensors")[name] for folder in (tmp_path / "out", loud_dir))
    assert not torch.equal(stored, was)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, tuned(tokens).logits)


def test_the_older_name(model_dir, registry):
    assert AutoRound(model_dir, registry=registry, scheme="STEPS4", enable_alg_ext=True).options.recipe == "best"
    assert AutoRound(model_dir, registry=registry, scheme="STEPS4").options.recipe == "published"


def test_an_unknown_recipe_is_refused():
    with pytest.raises(UnknownOptionError, match="recipe must be published or best"):
        TuningOptions(recipe="bset")
