# SPDX-License-Identifier: Apache-2.0
"""The plan: what is left alone and why, what it costs, what stands against it."""

import pytest
import torch

from auto_round import AutoRound, DataType, QuantizationScheme, hookimpl
from auto_round.errors import PlanError, SchemeError, UnknownNameError
from auto_round.export import OutputFormat
from auto_round.plan import choose_scheme

from .conftest import make_model, tiny_config


def test_every_linear_layer_is_told_with_its_reason(model_dir, registry):
    made = AutoRound(model_dir, scheme="STEPS4", registry=registry).plan("auto_round")
    assert len(made.layers) == 15
    head = made.layers[-1]
    assert (head.name, head.quantized) == ("lm_head", False)
    assert "outside the blocks" in head.reason
    assert all(layer.scale_dtype is None for layer in made.quantized)


def test_sizes_are_those_of_the_files(model_dir, registry, tokens, tmp_path):
    """The packing of core stores codes of any width as whole bytes, so only the unquantized part can be compared."""
    made = AutoRound(model_dir, scheme="STEPS4", registry=registry).plan("auto_round")
    weights = sum(layer.shape[0] * layer.shape[1] for layer in made.quantized)
    groups = sum(layer.shape[0] * -(-layer.shape[1] // 32) for layer in made.quantized)
    assert made.output_bytes == made.model_bytes - 2 * weights + weights // 2 + 2 * groups
    assert made.bits_per_weight == pytest.approx(4 + 16 * groups / weights)


def test_layers_a_data_type_cannot_take_are_left_alone(registry):
    made = AutoRound(
        make_model(tiny_config(hidden_size=8, num_attention_heads=2, num_key_value_heads=1, intermediate_size=6)),
        scheme="STEPS4",
        registry=registry,
    ).plan()
    reasons = {layer.name: layer.reason for layer in made.layers}
    assert reasons["model.layers.0.mlp.down_proj"] == "rows of fewer than 8 weights"
    assert reasons["model.layers.0.mlp.up_proj"] == ""


def test_a_tied_head_cannot_be_quantized_alone(registry):
    model = make_model(tiny_config(tie_word_embeddings=True))
    with pytest.raises(PlanError, match="shares its weight"):
        AutoRound(model, scheme="STEPS4", layer_config={"lm_head": {"bits": 8}}, registry=registry).plan()


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
