# SPDX-License-Identifier: Apache-2.0
"""The plan: what is left alone and why, what it costs, what stands against it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Llama4TextConfig

from auto_round import AutoRound, DataType, QuantizationScheme, hookimpl
from auto_round.errors import PlanError, SchemeError, UnknownNameError
from auto_round.planning import choose_scheme

from .conftest import Picky, make_model, tiny_config


def test_every_linear_layer_is_told_with_its_reason(model_dir, registry):
    made = AutoRound(model_dir, scheme="STEPS4", registry=registry).plan("auto_round")
    assert len(made.layers) == 15
    head = made.layers[-1]
    assert (head.name, head.quantized) == ("lm_head", False)
    assert "outside the blocks" in head.reason
    assert all(layer.scale_dtype is None for layer in made.quantized)


def test_what_nobody_takes_apart_is_told(registry):
    """Llama 4 keeps its experts in parameters of three dimensions without a word on what they mean."""
    config = Llama4TextConfig(
        vocab_size=60, hidden_size=32, intermediate_size=48, intermediate_size_mlp=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, num_local_experts=4, num_experts_per_tok=1,
        interleave_moe_layer_step=1, pad_token_id=0,
    )  # fmt: skip
    made = AutoRound(AutoModelForCausalLM.from_config(config), scheme="STEPS4", registry=registry).plan("fake")
    experts = [kept for kept in made.kept if kept.stacked]
    assert [kept.name.rpartition(".")[2] for kept in experts] == ["gate_up_proj", "down_proj"] * 2
    share = sum(kept.nbytes for kept in experts) / made.model_bytes
    assert f"{share:.0%} of the model stays at full precision: {experts[0].name} and 3 more" in made.notes[0]
    assert "model.layers.1.feed_forward.experts" in made.left_alone


@pytest.mark.parametrize("format", ["auto_round", "fake", "fake,auto_round"])
def test_sizes_are_those_of_the_files(model_dir, registry, tokens, tmp_path, format):
    """Of all that is written: the packing of core takes a byte a code, format fake what the model took."""
    ar = AutoRound(model_dir, scheme="STEPS4", registry=registry, dataset=tokens, nsamples=8, iters=0, verbose=False)
    made = ar.plan(format)
    _, folders = ar.quantize_and_save(tmp_path / "out", format=format)
    stored = [t for folder in folders for t in load_file(Path(folder) / "model.safetensors").values()]
    assert made.output_bytes == sum(tensor.nbytes for tensor in stored)
    weights = sum(layer.shape[0] * layer.shape[1] for layer in made.quantized)
    groups = sum(layer.shape[0] * -(-layer.shape[1] // 32) for layer in made.quantized)
    each = {"auto_round": 8 + 16 * groups / weights, "fake": 16.0}
    formats = format.split(",")
    assert made.bits_per_weight == pytest.approx(sum(each[name] for name in formats) / len(formats))


def test_without_a_format_sizes_are_those_that_the_data_type_tells(model_dir, registry):
    made = AutoRound(model_dir, scheme="STEPS4", registry=registry).plan()
    weights = sum(layer.shape[0] * layer.shape[1] for layer in made.quantized)
    groups = sum(layer.shape[0] * -(-layer.shape[1] // 32) for layer in made.quantized)
    assert made.output_bytes == made.model_bytes - 2 * weights + weights // 2 + 2 * groups
    assert made.bits_per_weight == pytest.approx(4 + 16 * groups / weights)


def test_the_embedding_of_a_tied_output_layer_stays(registry):
    config = tiny_config(tie_word_embeddings=True)
    made = AutoRound(make_model(config), scheme="STEPS4", registry=registry, quant_lm_head=True).plan("auto_round")
    head = made.layers[-1]
    assert head.tied
    assert head.quantized
    saved = sum(2 * layer.shape[0] * layer.shape[1] - layer.nbytes for layer in made.quantized if not layer.tied)
    assert made.output_bytes == made.model_bytes - saved + head.nbytes


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"act_group_size": (32, 32)}, "activations have groups along a row, not blocks"),
        ({"act_data_type": "picky"}, "picky wants groups of 7"),
    ],
)
def test_activations_that_cannot_be_are_refused_when_planned(model_dir, registry, fields, told):
    class Picky(type(registry.data_type("steps"))):
        name = "picky"

        def supports(self, scheme, shape):
            return "picky wants groups of 7" if scheme.group_size != 7 else None

    class Plugin:
        @hookimpl
        def quant_tensor(self):
            return [Picky()]

    registry.register(Plugin(), name="picky")
    job = AutoRound(model_dir, scheme="STEPS4", registry=registry, **{"act_bits": 8, **fields})
    with pytest.raises(PlanError, match=f"the activations of .*q_proj cannot be quantized so: {told}"):
        job.plan()


def test_layers_to_ignore_are_named_as_in_layer_config(model_dir, registry):
    job = AutoRound(model_dir, scheme="STEPS4", registry=registry, ignore_layers="layers.0.mlp, re:v_proj$, lm_head")
    left = [layer.name for layer in job.plan("auto_round").layers if not layer.quantized]
    mlp = [f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down")]
    assert sorted(left) == sorted([*mlp, *(f"model.layers.{i}.self_attn.v_proj" for i in range(2)), "lm_head"])
    again = AutoRound(
        model_dir, scheme="STEPS4", registry=registry, ignore_layers=["v_proj"], layer_config={"layers.0": {"bits": 3}}
    )
    assert {layer.scheme.bits for layer in again.plan().quantized if layer.block == "model.layers.0"} == {3}
    assert not any("v_proj" in layer.name for layer in again.plan().quantized)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"ignore_layers": "q_porj"}, "'q_porj' matches no layer; did you mean q_proj"),
        ({"ignore_layers": ["q_proj", 3]}, "ignore_layers is names of layers"),
        ({"ignore_layers": "q_proj", "layer_config": {"q_proj": {"bits": 8}}}, "'q_proj' is in layer_config and in"),
    ],
)
def test_layers_to_ignore_that_are_none_are_refused(model_dir, registry, options, told):
    with pytest.raises(PlanError, match=told):
        AutoRound(model_dir, scheme="STEPS4", registry=registry, **options).plan()


def test_what_stays_anyhow_may_be_named_to_stay_and_not_to_change(gated, registry):
    """Existing scripts leave routers alone by name."""
    made = AutoRound(gated, scheme="STEPS4", registry=registry, ignore_layers="mlp.gate,embed_tokens,lm_head").plan()
    assert len(made.quantized) == len(AutoRound(gated, scheme="STEPS4", registry=registry).plan().quantized)
    job = AutoRound(gated, scheme="STEPS4", registry=registry, layer_config={"mlp.gate": {"bits": 8}})
    with pytest.raises(PlanError, match=r"'mlp.gate' is model.layers.0.mlp.gate, which stays as it is: .* no linear"):
        job.plan()
    with pytest.raises(PlanError, match="'embed_tokens' is model.embed_tokens, which stays .* an embedding"):
        AutoRound(gated, scheme="STEPS4", registry=registry, layer_config={"embed_tokens": "STEPS4"}).plan()


@pytest.mark.parametrize(
    ("layer_config", "told"),
    [
        ({"q_proj": 8}, "'q_proj' leads to 8, which is no scheme"),
        ({"q_proj": None}, "'q_proj' leads to None"),
        ({3: {"bits": 8}}, "3 is no name of layers"),
        ({"q_porj": {"bits": 8}}, "'q_porj' matches no layer; did you mean q_proj"),
        ({"re:(": {"bits": 16}}, "'re:\\(' is no valid regular expression"),
    ],
)
def test_a_layer_config_of_other_things_is_refused(model_dir, registry, layer_config, told):
    with pytest.raises(PlanError, match=told):
        AutoRound(model_dir, scheme="STEPS4", registry=registry, layer_config=layer_config).plan()


def test_layers_a_data_type_cannot_take_are_left_alone(registry):
    made = AutoRound(
        make_model(tiny_config(hidden_size=8, num_attention_heads=2, num_key_value_heads=1, intermediate_size=6)),
        scheme="STEPS4",
        registry=registry,
    ).plan()
    reasons = {layer.name: layer.reason for layer in made.layers}
    assert reasons["model.layers.0.mlp.down_proj"] == "rows of fewer than 8 weights"
    assert reasons["model.layers.0.mlp.up_proj"] == ""


@torch.no_grad()
def test_a_layer_without_weights_is_left_alone(registry):
    model = make_model()
    for proj in ("up_proj", "gate_proj", "down_proj"):  # a block without a middle
        linear = model.model.layers[0].mlp.get_submodule(proj)
        linear.weight = torch.nn.Parameter(linear.weight[:, :0] if proj == "down_proj" else linear.weight[:0])
        linear.in_features, linear.out_features = reversed(linear.weight.shape)
    made = {layer.name: layer for layer in AutoRound(model, scheme="STEPS4", registry=registry).plan().layers}
    for name in ("up_proj", "gate_proj", "down_proj"):
        assert made[f"model.layers.0.mlp.{name}"].reason == "it has no weights"


def test_a_tied_head_gets_a_weight_of_its_own(registry, tokens, tmp_path):
    make_model(tiny_config(tie_word_embeddings=True)).save_pretrained(tmp_path / "model")
    job = AutoRound(
        tmp_path / "model", scheme="STEPS4", quant_lm_head=True, dataset=tokens, iters=0, nsamples=8, registry=registry
    )
    before = job.model.get_input_embeddings().weight.clone()
    model, _ = job.quantize_and_save(tmp_path / "out", format="fake")
    assert torch.equal(model.get_input_embeddings().weight, before)
    assert not torch.equal(model.lm_head.weight, before)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert not loaded.config.tie_word_embeddings
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_the_head_is_planned_when_it_is_asked_for(model_dir, registry):
    made = AutoRound(model_dir, scheme="STEPS4", quant_lm_head=True, registry=registry).plan("auto_round")
    assert made.layers[-1].quantized
    named = AutoRound(model_dir, scheme="STEPS4", layer_config={"lm_head": {"bits": 8}}, registry=registry).plan()
    assert named.layers[-1].scheme.bits == 8


def test_layers_that_share_an_input_know_each_other(model_dir, registry):
    made = AutoRound(model_dir, scheme="STEPS4", registry=registry).plan()
    shares = {layer.name.removeprefix("model.layers.0."): layer.shares for layer in made.layers}
    attention = tuple(f"model.layers.0.self_attn.{n}_proj" for n in "qkv")
    assert shares["self_attn.k_proj"] == attention
    assert shares["self_attn.o_proj"] == ("model.layers.0.self_attn.o_proj",)
    assert shares["mlp.up_proj"] == ("model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj")


class Mixture(QuantizationScheme):
    """Eight bits in the last block, more than a rule of names could say."""

    def for_layer(self, place):
        return QuantizationScheme(8 if place.block == place.blocks - 1 else 4, 32, data_type="steps")


def test_a_mixture_decides_layer_by_layer_and_layer_config_has_the_last_word(model_dir, registry):
    registry.add_scheme("MIXED", Mixture(data_type="steps"))
    job = AutoRound(model_dir, scheme="MIXED", layer_config={"layers.1.mlp": {"bits": 2}}, registry=registry)
    bits = {layer.name: layer.scheme.bits for layer in job.plan().quantized}
    assert bits["model.layers.0.mlp.up_proj"] == 4
    assert bits["model.layers.1.self_attn.q_proj"] == 8
    assert bits["model.layers.1.mlp.up_proj"] == 2


class Half(Picky):
    name = "half"

    def refuses(self, layer):
        return None

    def refuses_plan(self, plan):
        return ["half takes no llamas."]

    def scale_dtype(self, layer):
        return torch.float16


class Formats:
    @hookimpl
    def exporters(self):
        return [Picky(), Half()]


def test_what_formats_refuse_is_collected_and_told_once(model_dir, registry):
    registry.register(Formats(), name="formats")
    job = AutoRound(model_dir, scheme="STEPS4", registry=registry)
    with pytest.raises(PlanError) as caught:
        job.plan("picky,half")
    problems = caught.value.problems
    assert "model.layers.0.mlp.gate_proj and 3 more: format picky cannot hold it: it is too wide." in problems
    assert any("stores scales as torch.float32 and half" in p for p in problems)
    assert problems[-1] == "half takes no llamas."


def test_a_data_type_without_stored_form_is_only_for_fake(model_dir, registry):
    class Bare(DataType):
        name = "bare"

        def quant_tensor(self, tensor):
            return tensor.round(), None, None

    class Plugin:
        @hookimpl
        def quant_tensor(self):
            return [Bare()]

    registry.register(Plugin(), name="bare")
    job = AutoRound(model_dir, data_type="bare", registry=registry)
    job.plan("fake")
    with pytest.raises(PlanError, match="no stored form"):
        job.plan("auto_round")


def test_overrides_win_over_the_named_scheme(registry):
    name, scheme = choose_scheme(registry, "STEPS4", {"bits": 3, "group_size": 16})
    assert (scheme.bits, scheme.group_size, scheme.data_type) == (3, 16, "steps")
    assert name == "STEPS4 (bits=3, group_size=16)"


def test_a_data_type_alone_is_a_scheme(registry):
    _, scheme = choose_scheme(registry, None, {"data_type": "steps", "group_size": 32})
    assert scheme == QuantizationScheme(bits=4, group_size=32, data_type="steps")


@pytest.mark.parametrize(
    "fields", [{"bits": 0}, {"bits": "4"}, {"group_size": -2}, {"group_size": (1, 2, 3)}, {"super_bits": 0}]
)
def test_values_that_mean_nothing(fields):
    with pytest.raises(SchemeError):
        QuantizationScheme(**fields)


def test_unknown_scheme_says_the_nearest(model_dir, registry):
    with pytest.raises(UnknownNameError, match="STEPS4"):
        AutoRound(model_dir, scheme="STEP4", registry=registry)
