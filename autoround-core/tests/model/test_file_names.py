# SPDX-License-Identifier: Apache-2.0
"""Files are written under the names that the model's own files have, as transformers writes them."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from auto_round import AutoRound
from auto_round.errors import PlanError
from auto_round.model.experts import SplitExperts

pytestmark = pytest.mark.slow

ARCHITECTURES = ["qwen3_moe", "mixtral", "phimoe", "granitemoe", "gpt_oss"]
FUSED = ["granitemoe", "gpt_oss"]
ROUND = {"scheme": "STEPS4", "iters": 0, "disable_opt_rtn": True, "verbose": False}


@pytest.fixture
def original(request, stored):
    return stored(request.param)


def tensors_of(directory):
    return load_file(directory / "model.safetensors")


def parameter_of(model, name):
    """A parameter of a model whose experts may be taken apart."""
    module, _, leaf = name.rpartition(".")
    module = model.get_submodule(module)
    return module.joined(leaf) if isinstance(module, SplitExperts) else getattr(module, leaf)


@pytest.mark.parametrize("original", ARCHITECTURES, indirect=True)
@pytest.mark.parametrize("source", ["files", "a block at a time", "object"])
@pytest.mark.parametrize("but", ["all", "an expert", "a block"])
@torch.no_grad()
def test_weights_at_full_precision_are_written_as_transformers_writes_them(original, source, but, installed, tmp_path):
    """Names and shapes; loaded again, they are the weights of the model that was rounded in memory."""
    experts = next(layer.name for layer in AutoRound(original, **ROUND).plan().layers if layer.expert).rsplit(".", 2)[0]
    left = {"all": None, "an expert": f"{experts}.1", "a block": "layers.1"}[but]
    options = ROUND | ({} if left is None else {"layer_config": {left: {"bits": 16}}})
    rounded, _ = AutoRound(original, **options).quantize(format="fake")
    model = AutoModelForCausalLM.from_pretrained(original, dtype="auto") if source == "object" else original
    job = AutoRound(model, low_cpu_mem_usage=source == "a block at a time", **options)
    job.quantize_and_save(tmp_path / "out", format="fake")
    before, after = tensors_of(original), tensors_of(tmp_path / "out")
    assert {name: tensor.shape for name, tensor in before.items()} == {n: t.shape for n, t in after.items()}
    loaded, told = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto", output_loading_info=True)
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, parameter_of(rounded, name)), name


@pytest.mark.parametrize("original", ARCHITECTURES, indirect=True)
def test_a_plan_knows_what_files_have(original, installed):
    plan = AutoRound(original, **ROUND).plan("fake")
    stored = tensors_of(original)
    for layer in plan.layers:
        assert layer.fused != (f"{layer.stored_name}.weight" in stored)
        assert layer.fused <= layer.expert
    others = stored.keys() - {f"{layer.stored_name}.weight" for layer in plan.quantized}
    named = (name for name in others if name.endswith(".weight") and "embed" not in name)
    linear = {name.removesuffix(".weight") for name in named if stored[name].dim() == 2}
    assert len(linear) == 3  # the routers of two blocks, and the output layer
    assert linear <= set(plan.left_alone)


@pytest.mark.parametrize("original", ["mixtral"], indirect=True)
def test_experts_that_all_are_left_alone_are_named_together(original, installed):
    """vLLM asks by the name of all of them whether they are quantized."""
    left = AutoRound(original, **ROUND, layer_config={"layers.1.mlp.experts": {"bits": 16}}).plan("fake").left_alone
    assert {"model.layers.1.mlp.experts", "model.layers.1.block_sparse_moe.experts"} <= set(left)
    left = AutoRound(original, **ROUND, layer_config={"layers.1.mlp.experts.0": {"bits": 16}}).plan("fake").left_alone
    assert "model.layers.1.mlp.experts.0.up_proj" in left
    assert "model.layers.1.mlp.experts" not in left


@pytest.mark.parametrize("original", FUSED, indirect=True)
@pytest.mark.parametrize("source", ["files", "object"])
def test_experts_that_files_have_in_one_tensor_are_for_formats_that_know(original, source, installed):
    model = AutoModelForCausalLM.from_pretrained(original) if source == "object" else original
    job = AutoRound(model, **ROUND)
    with pytest.raises(PlanError, match="experts.*: format llm_compressor cannot hold it: readers know the experts"):
        job.plan("llm_compressor")
    assert job.plan("auto_round").quantized
