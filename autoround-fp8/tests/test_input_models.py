# SPDX-License-Identifier: Apache-2.0
"""Models that are published in FP8, quantized anew: read as transformers reads them, left without a trace of FP8."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, FineGrainedFP8Config, LlamaConfig, Qwen3MoeConfig

from auto_round import AutoRound
from auto_round.errors import ModelError
from auto_round.model.opened import open_model

COMMON = {
    "vocab_size": 60, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 128, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**COMMON),
    "qwen3_moe": Qwen3MoeConfig(**COMMON, moe_intermediate_size=128, num_experts=4, num_experts_per_tok=2),
}
IDS = torch.randint(3, 60, (4, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=CONFIGS)
def published(request, tmp_path):
    """A checkpoint as DeepSeek-class models come: e4m3 in blocks of 128 by 128, made here by plain arithmetic."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[request.param], dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "model")
    file, config_file = tmp_path / "model" / "model.safetensors", tmp_path / "model" / "config.json"
    stored = {}
    for name, tensor in load_file(file).items():
        if "_proj" not in name:
            stored[name] = tensor
            continue
        rows, cols = tensor.shape[0] // 128, tensor.shape[1] // 128
        blocks = tensor.float().view(rows, 128, cols, 128)
        scale = blocks.abs().amax((1, 3)) / 448
        stored[name] = (blocks / scale[:, None, :, None]).view(tensor.shape).to(torch.float8_e4m3fn)
        stored[f"{name}_scale_inv"] = scale
    save_file(stored, file, {"format": "pt"})
    config = json.loads(config_file.read_text())
    config["quantization_config"] = {
        "quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128], "fmt": "e4m3",
    }  # fmt: skip
    config_file.write_text(json.dumps(config))
    return tmp_path / "model"


def test_it_is_planned_as_the_plain_model(published):
    opened = open_model(published)
    assert opened.stored_dtype("model.layers.0.self_attn.q_proj") == torch.bfloat16
    assert not any("scale" in name for name in opened.headers)


@torch.no_grad()
def test_weights_are_those_transformers_decodes(published):
    opened = open_model(published)
    opened.load()
    theirs = AutoModelForCausalLM.from_pretrained(
        published, quantization_config=FineGrainedFP8Config(dequantize=True), dtype=torch.bfloat16
    )
    ours, theirs = opened.model.state_dict(), theirs.state_dict()
    for name in ours.keys() & theirs.keys():
        assert torch.equal(ours[name], theirs[name]), name
    for name in theirs.keys() - ours.keys():  # experts, fused there
        module, _, parameter = name.rpartition(".")
        assert torch.equal(opened.model.get_submodule(module).joined(parameter), theirs[name]), name


@torch.no_grad()
@pytest.mark.parametrize("options", [{"iters": 2}, {"iters": 0, "layer_config": {"layers.0": {"bits": 16}}}])
def test_it_is_quantized_anew(published, tmp_path, options):
    job = AutoRound(
        published, scheme="FPW8A16", dataset=IDS, nsamples=4, seqlen=16, batch_size=2, verbose=False, **options
    )
    model, _ = job.quantize_and_save(tmp_path / "out", format="llm_compressor")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert not any("scale_inv" in name for name in stored)
    name = "model.layers.1.self_attn.q_proj"
    decoded = (stored[f"{name}.weight"].float() * stored[f"{name}.weight_scale"].float()).bfloat16()
    assert torch.equal(decoded, model.get_submodule(name).weight)
    if "layer_config" in options:
        name = "model.layers.0.self_attn.q_proj.weight"
        original = dict(open_model(published).other_tensors(set()))
        assert torch.equal(stored[name], original[name])


def test_a_way_to_quantize_that_nobody_reads_is_refused(published):
    config = json.loads((published / "config.json").read_text())
    config["quantization_config"]["quant_method"] = "awq"
    (published / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"quantized already \(method awq\), which no installed plugin reads"):
        open_model(published)
