# SPDX-License-Identifier: Apache-2.0
"""The plan: what is left alone and why, what it costs, what stands against it."""

import re
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, CohereConfig, JambaConfig, Llama4TextConfig, Qwen3NextConfig

from auto_round import AutoRound, DataType, QuantizationScheme, hookimpl
from auto_round.data_type import Runtime
from auto_round.errors import PlanError, SchemeError, UnknownNameError
from auto_round.export import OutputFormat
from auto_round.planning import choose_scheme
from auto_round.runtimes import obstacle

from .conftest import make_model, tiny_config


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


def test_sizes_are_those_of_the_files(model_dir, registry, tokens, tmp_path):
    """The packing of core stores codes of any width as whole bytes, so only the unquantized part can be compared."""
    made = AutoRound(model_dir, scheme="STEPS4", registry=registry).plan("auto_round")
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


class Known(DataType):
    name = "known"
    encodes = True
    runtimes = (
        Runtime("some runtime", "1.0", "auto_round", limits={"group_size": (32, 64)}, fuses=True, note="use 32"),
        Runtime("another", "2.0", "auto_round", multiple=64),
        Runtime("a third", "3.0", "auto_round", limits={"group_size": (16,)}, needs="its option loud"),
        Runtime("a third", "3.0", "auto_round", limits={"group_size": (32,)}),
        Runtime("a fourth", "4.0", "auto_round", limits={"bits": (4, 6), "group_size": (64,)}),
        Runtime("a fourth", "4.0", "auto_round", limits={"bits": (2,), "group_size": (16,)}),
        Runtime("a fourth", "4.0", "auto_round", limits={"bits": (3,), "group_size": (16,)}),
    )

    def quant_tensor(self, tensor):
        return tensor, None, None


class KnownPlugin:
    @hookimpl
    def quant_tensor(self):
        return [Known()]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"group_size": 32}, ["another will not load .* in format auto_round: shape .* multiples of 64"]),
        (
            {"group_size": 16},
            [
                "some runtime will not load .* and 13 more .* group_size=16, and it takes 32, 64 .use 32.",
                "a third loads .* and 13 more in format auto_round with its option loud",
                r"a fourth will not load .* and 13 more in format auto_round: group_size=16, and it takes 64\.",
            ],
        ),
        (
            {"group_size": 16, "bits": 8},
            [  # of the records that come closest, whatever their order
                r"a fourth will not load .* and 13 more in format auto_round: bits=8, and it takes 2, 3\.",
            ],
        ),
        (
            {"group_size": 32, "layer_config": {"layers.0.self_attn.q_proj": {"group_size": 64}}},
            [r"some runtime will not load .*q_proj .* computes .*k_proj and its like together, in one scheme"],
        ),
    ],
)
def test_what_a_runtime_will_not_load_is_said_beforehand(model_dir, registry, options, expected):
    registry.register(KnownPlugin(), name="known")
    notes = AutoRound(model_dir, data_type="known", registry=registry, **options).plan("auto_round").notes
    for pattern in expected:
        assert any(re.search(pattern, note) for note in notes), notes
    assert any("a third" in note for note in notes) == (options["group_size"] == 16 or "layer_config" in options)


def test_a_runtime_that_reads_no_single_experts_is_said_beforehand(model_dir, registry):
    plan = AutoRound(model_dir, scheme="STEPS4", registry=registry).plan("auto_round")
    record = Runtime("a fourth", "4.0", "auto_round", experts=False)
    layer = plan.quantized[0]
    assert obstacle(layer, record) is None
    assert obstacle(replace(layer, expert=True), record) == "it does not read routed experts that are stored so"
    assert obstacle(replace(layer, expert=True), replace(record, experts=True)) is None


@pytest.fixture
def gated():
    """A model with a gate of one output beside each multilayer perceptron, and a layer of 8 in linear attention."""
    config = Qwen3NextConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, moe_intermediate_size=64, num_hidden_layers=4,
        shared_expert_intermediate_size=64, num_attention_heads=2, num_key_value_heads=2, head_dim=32, num_experts=4,
        num_experts_per_tok=1, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=32,
        linear_value_head_dim=32,
    )  # fmt: skip
    return make_model(config)


@pytest.fixture
def gauged(registry):
    """The registry, with a data type for which there is a runtime that wants multiples of 64."""

    class Gauged(type(registry.data_type("steps"))):
        name = "gauged"
        runtimes = (Runtime("another", "2.0", "auto_round", multiple=64),)

    class Plugin:
        @hookimpl
        def quant_tensor(self):
            return [Gauged()]

    registry.register(Plugin(), name="gauged")
    return registry


def test_a_small_layer_that_a_runtime_cannot_take_stays(gated, gauged):
    made = AutoRound(gated, data_type="gauged", group_size=32, registry=gauged).plan("auto_round")
    left = {layer.name: layer.reason for layer in made.layers if not layer.quantized and layer.block}
    gates = [f"model.layers.{i}.mlp.shared_expert_gate" for i in range(4)]
    small = [f"model.layers.{i}.linear_attn.in_proj_ba" for i in range(3)]
    assert sorted(left) == sorted([*gates, *small])
    assert {left[gate] for gate in gates} == {"a gate of one output; name it in layer_config to quantize it"}
    told = "another in format auto_round takes multiples of 64, not (8, 64)"
    assert told in left[small[0]]
    assert made.notes == (f"small layers stay at full precision, {small[0]} and 2 more: {told}.",)


def test_a_small_layer_is_quantized_for_formats_that_take_it_and_when_it_is_named(gated, gauged):
    fake = AutoRound(gated, data_type="gauged", group_size=32, registry=gauged).plan("fake")
    assert {layer.name.rpartition(".")[2] for layer in fake.layers if layer.block and not layer.quantized} == {
        "shared_expert_gate"
    }
    named = {"in_proj_ba": {"bits": 8}, "shared_expert_gate": {"bits": 8}}
    job = AutoRound(gated, data_type="gauged", group_size=32, registry=gauged, layer_config=named)
    made = job.plan("auto_round")
    assert all(layer.quantized for layer in made.layers if layer.block)
    assert any("another will not load model.layers.0.linear_attn.in_proj_ba" in note for note in made.notes)


@pytest.mark.parametrize("share", [0.0002, 1])
def test_layers_that_are_much_of_a_block_or_computed_with_others_are_never_left_alone(
    gated, registry, share, monkeypatch
):
    """Formats refuse them and notes tell of them, as before: experts of an odd width, one of two projections."""

    class Odd(Picky):
        name = "odd"

        def refuses(self, layer):
            wanted = "in_proj_ba" if share < 1 else "up_proj"
            return "it is odd." if layer.name.endswith(wanted) else None

    class Plugin:
        @hookimpl
        def exporters(self):
            return [Odd()]

    registry.register(Plugin(), name="odd")
    monkeypatch.setattr("auto_round.small_layers.SMALL", share)
    with pytest.raises(PlanError, match="and .* more: format odd cannot hold it: it is odd"):
        AutoRound(gated, scheme="STEPS4", registry=registry).plan("odd")


@pytest.mark.parametrize(
    ("layers", "told"), [("mlp.gate_proj", "mlp.up_proj"), ("self_attn.k_proj", "self_attn.q_proj")]
)
def test_what_is_computed_as_one_needs_one_scheme(registry, layers, told):
    """Attention and a multilayer perceptron beside it may differ, though they have one input."""
    registry.register(KnownPlugin(), name="known")
    config = CohereConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    job = AutoRound(
        make_model(config), data_type="known", group_size=32, registry=registry, layer_config={layers: {"bits": 8}}
    )
    notes = [note for note in job.plan("auto_round").notes if "computes" in note]
    assert len(notes) == 2
    assert told in notes[0] + notes[1]
    apart = AutoRound(
        make_model(config), data_type="known", group_size=32, registry=registry, layer_config={"mlp": {"bits": 8}}
    ).plan("auto_round")
    assert not any("computes" in note for note in apart.notes)


@pytest.mark.parametrize("left", [None, "mamba", "x_proj"])
def test_mixers_that_a_runtime_never_has_quantized_are_told(registry, left):
    """vLLM has Mamba's first mixer without any quantization, also in Jamba; the second one it has with it."""
    registry.register(KnownPlugin(), name="known")
    config = JambaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_experts=1, attn_layer_period=2, attn_layer_offset=1, mamba_dt_rank=32,
        use_mamba_kernels=False, pad_token_id=0,
    )  # fmt: skip
    layer_config = {} if left is None else {left: {"bits": 16}}
    made = AutoRound(
        make_model(config), data_type="known", group_size=32, registry=registry, layer_config=layer_config
    ).plan("auto_round")
    told = [note for note in made.notes if "it has such mixers at full precision alone" in note]
    if left == "mamba":
        assert not told
    else:
        others = {None: 3, "x_proj": 2}[left]
        names = f"model.layers.0.mamba.in_proj and {others} more in format auto_round"
        assert told == [f"some runtime will not load {names}: it has such mixers at full precision alone."]


class Picky(OutputFormat):
    name = "picky"

    def refuses(self, layer):
        return "it is too wide." if layer.shape[0] > 40 else None

    def scale_dtype(self, layer):
        return torch.float32

    def start(self, plan, model, directory):
        raise NotImplementedError


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
