# SPDX-License-Identifier: Apache-2.0
"""Scales for keys and values kept in e4m3: observed where a cache would be filled, stored where runtimes look."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, Qwen3Config

from auto_round import AutoRound
from auto_round.errors import PlanError

COMMON = {
    "vocab_size": 60, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 64,
}  # fmt: skip
CONFIGS = {"llama": LlamaConfig(**COMMON), "qwen3": Qwen3Config(**COMMON)}  # Qwen3 normalises keys behind k_proj
IDS = torch.randint(3, 60, (4, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=CONFIGS)
def source(request, tmp_path):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIGS[request.param], dtype=torch.bfloat16).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("iters", [0, 1])
@torch.no_grad()
def test_scales_are_those_of_what_a_cache_holds(source, tmp_path, iters):
    job = AutoRound(
        source, scheme="FP8_DYNAMIC", static_kv_dtype="fp8", dataset=IDS, nsamples=4, seqlen=16, iters=iters,
        batch_size=2, verbose=False,
    )  # fmt: skip
    job.quantize_and_save(tmp_path / "out", format="llm_compressor")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["kv_cache_scheme"] == {
        "num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True,
    }  # fmt: skip
    stored = load_file(tmp_path / "out" / "model.safetensors")
    original = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    cache = DynamicCache()
    original(IDS, past_key_values=cache)
    for index, layer in enumerate(cache.layers):
        for name, kept in (("k", layer.keys), ("v", layer.values)):
            scale = stored[f"model.layers.{index}.self_attn.{name}_scale"]
            # Batches of two and of four sum in other orders: one step of bfloat16 in the largest number, and the scale
            # itself is rounded to bfloat16.
            torch.testing.assert_close(scale.double(), kept.double().abs().max().view(1) / 448, rtol=2**-7, atol=0)


@torch.no_grad()
def test_compressed_tensors_finds_them(source, tmp_path):
    job = AutoRound(
        source, scheme="FP8_DYNAMIC", static_kv_dtype="fp8", dataset=IDS, nsamples=4, seqlen=16, iters=0, verbose=False
    )
    model, _ = job.quantize_and_save(tmp_path / "out", format="llm_compressor")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    for name in ("k_scale", "v_scale"):
        attention = loaded.model.layers[1].self_attn
        assert torch.equal(getattr(attention, name).flatten(), stored[f"model.layers.1.self_attn.{name}"])
    logits = loaded(IDS).logits
    assert torch.isfinite(logits).all()
    # Keys and values in e4m3 there, as they are here: 2^-4 of each, averaged over a head.
    assert (logits - model(IDS).logits).norm() < 0.1 * model(IDS).logits.norm()


def test_a_format_without_a_place_for_them_says_so(source):
    with pytest.raises(PlanError, match="fp8 cannot hold scales of keys and values: it has no place for them"):
        AutoRound(source, scheme="FP8_BLOCK", static_kv_dtype="fp8").plan("fp8")
    with pytest.raises(PlanError, match="no installed plugin writes them for data type fp8_e5m2"):
        AutoRound(source, scheme="FP8_DYNAMIC", static_kv_dtype="fp8_e5m2").plan("llm_compressor")
