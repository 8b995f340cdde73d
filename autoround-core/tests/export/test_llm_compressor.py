# SPDX-License-Identifier: Apache-2.0
"""The container of compressed-tensors: its groups, its ignore list; and a packing asked for by name."""

import json

import pytest
import torch

from auto_round import AutoRound, hookimpl
from auto_round.errors import PlanError, UnknownNameError
from auto_round.export import Packing


class Plain(Packing):
    """Steps as they are, in the words of the container."""

    name = "acme:plain"
    format = "llm_compressor"

    def refuses(self, data_type, scheme, shape):
        return None if data_type == "steps" and scheme.bits <= 8 else "acme:plain stores steps."

    def scale_dtype(self, weight_dtype):
        return weight_dtype

    def describe(self, data_type, scheme):
        return {"format": "acme", "weights": {"num_bits": scheme.bits, "type": "int"}}

    def layout(self, scheme, shape):
        raise NotImplementedError

    def pack(self, codes):
        return {"weight": codes.tensors["codes"], "weight_scale": codes.tensors["scale"]}

    def unpack(self, tensors, data_type, scheme, shape, dtype):
        raise NotImplementedError


class Plugin:
    @hookimpl
    def exporters(self):
        return [Plain()]


@pytest.fixture
def packed(registry):
    registry.register(Plugin(), name="plain")
    return registry


def export(directory, out, registry, tokens, **options):
    job = AutoRound(
        directory, scheme="STEPS4", dataset=tokens, nsamples=8, iters=0, registry=registry, verbose=False, **options
    )
    job.quantize_and_save(out, format=options.pop("format", "llm_compressor"))
    return json.loads((out / "config.json").read_text())["quantization_config"]


def test_one_group_and_everything_else_ignored(model_dir, packed, tokens, tmp_path):
    config = export(model_dir, tmp_path / "out", packed, tokens, layer_config={"layers.0.mlp.up_proj": {"bits": 16}})
    assert config["quant_method"] == "compressed-tensors"
    assert config["format"] == "acme"
    assert config["ignore"] == ["model.layers.0.mlp.up_proj", "lm_head"]
    (group,) = config["config_groups"].values()
    assert group["targets"] == ["Linear"]
    assert group["weights"] == {"num_bits": 4, "type": "int"}


def test_a_mixture_is_several_groups_by_name(model_dir, packed, tokens, tmp_path):
    config = export(model_dir, tmp_path / "out", packed, tokens, layer_config={"down_proj": {"bits": 8}})
    groups = list(config["config_groups"].values())
    assert len(groups) == 2
    assert groups[1]["targets"] == ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]
    assert len(groups[0]["targets"]) == 12


def test_scales_are_kept_as_the_packing_stores_them(model_dir, packed):
    plan = AutoRound(model_dir, scheme="STEPS4", registry=packed).plan("llm_compressor")
    assert {layer.scale_dtype for layer in plan.quantized} == {torch.bfloat16}


def test_two_formats_that_disagree_about_scales_are_refused_together(model_dir, packed):
    class Half(Plain):
        name, format = "acme:half", "auto_round"

        def scale_dtype(self, weight_dtype):
            return torch.float16

    class Other:
        @hookimpl
        def exporters(self):
            return [Half()]

    packed.register(Other(), name="other")
    with pytest.raises(PlanError, match="one tuning cannot serve both"):
        AutoRound(model_dir, scheme="STEPS4", registry=packed).plan("llm_compressor,auto_round")


def test_no_packing_is_said_before_the_work(model_dir, registry):
    with pytest.raises(PlanError, match="no installed plugin has a packing of steps"):
        AutoRound(model_dir, scheme="STEPS4", registry=registry).plan("llm_compressor")


def test_a_packing_can_be_insisted_on(model_dir, packed):
    plan = AutoRound(model_dir, scheme="STEPS4", registry=packed).plan("acme:plain")
    assert {layer.scale_dtype for layer in plan.quantized} == {torch.bfloat16}
    with pytest.raises(UnknownNameError, match="acme:plane"):
        AutoRound(model_dir, scheme="STEPS4", registry=packed).plan("acme:plane")
