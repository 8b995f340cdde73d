# SPDX-License-Identifier: Apache-2.0
"""Format mxfp4: a gpt-oss model as it is published, loaded by transformers and nothing of ours."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GptOssConfig, LlamaConfig, Mxfp4Config, Qwen3MoeConfig

from auto_round import AutoRound
from auto_round.errors import ContractError, PlanError
from auto_round.export.format import OutputFormat
from auto_round.model.experts import split_experts
from auto_round.tuning.result import LayerResult
from auto_round_mxfp.format_mxfp4 import GptOssFormat

pytestmark = pytest.mark.slow

QUICK = {"nsamples": 8, "batch_size": 4, "verbose": False}
COMMON = {
    "vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "num_experts_per_tok": 2, "max_position_embeddings": 64, "tie_word_embeddings": False,
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
QWEN = Qwen3MoeConfig(**COMMON, intermediate_size=96, moe_intermediate_size=32, num_experts=4)
PARAMETERS = ("gate_up_proj", "down_proj")


def gpt_oss(**changes):
    sizes = {**COMMON, "intermediate_size": 96, "num_local_experts": 4, **changes}
    return GptOssConfig(**sizes, rope_parameters=ROPE)


@pytest.fixture
def tokens():
    return torch.randint(0, 96, (8, 16), generator=torch.Generator().manual_seed(3))


def random_model(config, dtype=torch.bfloat16):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1)
    return model


def load(directory, **options):
    model, told = AutoModelForCausalLM.from_pretrained(directory, dtype="auto", output_loading_info=True, **options)
    assert not any(told.values()), told
    return model


def weight_of(model, block, expert, parameter):
    return model.get_submodule(f"model.layers.{block}.mlp.experts.{expert}.{parameter}").weight


@pytest.mark.parametrize("iters", [0, 2])
def test_a_model_that_is_let_go_of_block_by_block_gives_the_same_files(tmp_path, tokens, iters):
    """As the command runs: the biases of experts, written last, belong to blocks that are gone by then."""
    random_model(gpt_oss()).save_pretrained(tmp_path / "model")
    files = []
    for thrifty in (False, True):
        job = AutoRound(
            tmp_path / "model", scheme="MXFP4_MOE", dataset=tokens, iters=iters, low_cpu_mem_usage=thrifty, **QUICK
        )
        job.quantize_and_save(tmp_path / f"{thrifty}", format="mxfp4")
        files.append(load_file(tmp_path / f"{thrifty}/model.safetensors"))
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])


@pytest.mark.parametrize("source", ["files", "object"])
@pytest.mark.parametrize("dequantize", [True, False])
@torch.no_grad()
def test_transformers_loads_the_tuned_weights(tmp_path, tokens, source, dequantize):
    original = random_model(gpt_oss())
    original.save_pretrained(tmp_path / "model")
    before = load_file(tmp_path / "model/model.safetensors")
    job = AutoRound(
        tmp_path / "model" if source == "files" else original, scheme="MXFP4_MOE", dataset=tokens, iters=3, **QUICK
    )
    tuned, _ = job.quantize_and_save(tmp_path / "out", format="mxfp4")
    options = {"quantization_config": Mxfp4Config(dequantize=True)} if dequantize else {}
    loaded = load(tmp_path / "out", **options)
    for block in (0, 1):
        experts = loaded.model.layers[block].mlp.experts
        for parameter in PARAMETERS:
            found = getattr(experts, parameter)
            original_weight = before[f"model.layers.{block}.mlp.experts.{parameter}"]
            assert not torch.equal(found, original_weight)
            for expert in range(4):
                assert torch.equal(found[expert].T, weight_of(tuned, block, expert, parameter))
    for name, parameter in loaded.named_parameters():
        if name.rpartition(".")[2] not in PARAMETERS:
            assert torch.equal(parameter, before[name]), name
    split_experts(loaded)  # the same order of additions: theirs batches the experts of a token differently
    assert torch.equal(loaded(tokens).logits, tuned(tokens).logits)


@torch.no_grad()
def test_the_files_are_those_of_published_checkpoints(tmp_path, tokens):
    random_model(gpt_oss()).save_pretrained(tmp_path / "model")
    before = load_file(tmp_path / "model/model.safetensors")
    job = AutoRound(tmp_path / "model", scheme="MXFP4_MOE", dataset=tokens, iters=0, **QUICK)
    job.quantize()
    job.save_quantized(tmp_path / "out", format="mxfp4")
    after = load_file(tmp_path / "out/model.safetensors")
    experts = "model.layers.1.mlp.experts"
    described = {name.removeprefix(experts + "."): t for name, t in after.items() if name.startswith(experts)}
    assert {name: (tuple(t.shape), t.dtype) for name, t in described.items()} == {
        "gate_up_proj_blocks": ((4, 192, 2, 16), torch.uint8),
        "gate_up_proj_scales": ((4, 192, 2), torch.uint8),
        "gate_up_proj_bias": ((4, 192), torch.bfloat16),
        "down_proj_blocks": ((4, 64, 3, 16), torch.uint8),
        "down_proj_scales": ((4, 64, 3), torch.uint8),
        "down_proj_bias": ((4, 64), torch.bfloat16),
    }
    packed = {f"model.layers.{b}.mlp.experts.{p}" for b in (0, 1) for p in PARAMETERS}
    assert after.keys() - before.keys() == {f"{name}_{what}" for name in packed for what in ("blocks", "scales")}
    assert before.keys() - after.keys() == packed
    assert all(torch.equal(after[name], before[name]) for name in before.keys() - packed)
    config = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "mxfp4"
    assert config["modules_to_not_convert"][0] == "model.layers.*.self_attn"


@pytest.mark.parametrize(
    "overrides",
    [{"data_type": "mx_fp_rceil"}, {"data_type": "mx_fp4_rceil_v2"}, {"data_type": "mx_fp4e2m1_rceil"}],
    ids=lambda o: o["data_type"],
)
@torch.no_grad()
def test_any_rule_for_the_shared_exponent_decodes(tmp_path, tokens, overrides):
    random_model(gpt_oss(), torch.float16).save_pretrained(tmp_path / "model")
    job = AutoRound(tmp_path / "model", scheme="MXFP4_MOE", dataset=tokens, iters=0, **overrides, **QUICK)
    tuned, _ = job.quantize_and_save(tmp_path / "out", format="mxfp4")
    loaded = load(tmp_path / "out")
    for expert in range(4):
        found = loaded.model.layers[0].mlp.experts.down_proj[expert].T
        assert found.dtype == torch.float16
        assert torch.equal(found, weight_of(tuned, 0, expert, "down_proj"))


def planned(tmp_path, config, **options):
    random_model(config).save_pretrained(tmp_path / "model")
    return AutoRound(tmp_path / "model", dataset=torch.zeros(1, 4, dtype=torch.long), **{**QUICK, **options})


@pytest.mark.parametrize(
    ("config", "options", "said"),
    [
        (gpt_oss(), {"scheme": "MXFP4"}, ["routed experts and nothing else", "leaves activations as they are"]),
        (gpt_oss(), {"scheme": "MXFP4A16"}, ["q_proj and 7 more: .*routed experts and nothing else"]),
        (gpt_oss(), {"scheme": "MXFP8A16"}, ["stores e2m1 in blocks of 32"]),
        (gpt_oss(), {"scheme": "MXFP4_MOE", "group_size": 16}, ["stores e2m1 in blocks of 32"]),
        (gpt_oss(intermediate_size=80), {"scheme": "MXFP4_MOE"}, ["in_features must be a multiple of 32, not 80"]),
        (
            gpt_oss(),
            {"scheme": "MXFP4_MOE", "layer_config": {"layers.1.mlp.experts": {"bits": 16}}},
            [r"not without model\.layers\.1\.mlp\.experts\.0\.gate_up_proj and 7 more"],
        ),
        (QWEN, {"scheme": "MXFP4_MOE"}, ["is for GptOssForCausalLM, not for Qwen3MoeForCausalLM"]),
        (
            LlamaConfig(**COMMON, intermediate_size=96),
            {"scheme": "MXFP4A16"},
            ["is for GptOssForCausalLM, not for LlamaForCausalLM"],
        ),
    ],
    ids=["activations", "attention", "eight bits", "blocks of 16", "a width", "some experts", "another MoE", "dense"],
)
def test_what_it_cannot_hold_is_said_at_planning_time(tmp_path, config, options, said):
    job = planned(tmp_path, config, **options)
    for reason in said:
        with pytest.raises(PlanError, match=reason):
            job.plan("mxfp4")


def test_the_scheme_is_about_routed_experts_of_any_model(tmp_path):
    plan = planned(tmp_path, QWEN, scheme="MXFP4_MOE").plan("auto_round")
    assert len(plan.quantized) == 2 * 4 * 3
    assert {layer.name.split(".")[4] for layer in plan.quantized} == {"experts"}
    assert {layer.data_type.name for layer in plan.quantized} == {"mx_fp4"}
    assert not any(layer.scheme.quantizes_activations for layer in plan.quantized)
    assert plan.bits_per_weight == pytest.approx(4.25)


def test_a_layer_alone_is_not_packed(tmp_path):
    output_format = GptOssFormat()
    assert isinstance(output_format, OutputFormat)
    layer = planned(tmp_path, gpt_oss(), scheme="MXFP4_MOE").plan("mxfp4").quantized[0]
    with pytest.raises(ContractError, match="all experts of a block at once"):
        output_format.pack(LayerResult(layer, None, torch.zeros(1)))
