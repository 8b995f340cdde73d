# SPDX-License-Identifier: Apache-2.0
"""What a plan says of the places where its files are to be loaded, and leaves alone for their sake."""

import re
from dataclasses import replace

import pytest
from transformers import CohereConfig, JambaConfig

from auto_round import AutoRound, hookimpl
from auto_round.data_type import Runtime
from auto_round.errors import PlanError
from auto_round.runtimes import obstacle

from .conftest import Picky, Steps, make_model


class Known(Steps):
    name = "known"
    runtimes = (
        Runtime("some runtime", "1.0", "auto_round", limits={"group_size": (32, 64)}, fuses=True, note="use 32"),
        Runtime("another", "2.0", "auto_round", multiple=64),
        Runtime("a third", "3.0", "auto_round", limits={"group_size": (16,)}, needs="its option loud"),
        Runtime("a third", "3.0", "auto_round", limits={"group_size": (32,)}),
        Runtime("a fourth", "4.0", "auto_round", limits={"bits": (4, 6), "group_size": (64,)}),
        Runtime("a fourth", "4.0", "auto_round", limits={"bits": (2,), "group_size": (16,)}),
        Runtime("a fourth", "4.0", "auto_round", limits={"bits": (3,), "group_size": (16,)}),
    )


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
