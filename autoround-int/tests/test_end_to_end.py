# SPDX-License-Identifier: Apache-2.0
"""Integers through the whole road: tune, write, load through transformers, compute the same."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from auto_round import AutoRound
from auto_round.inference.packed_linear import PackedLinear

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL = REPOSITORY / "autoround-core/demo/models/pep-llama-7m"
TEXT = REPOSITORY / "autoround-core/demo/text/peps-calib.txt"
QUICK = {"nsamples": 8, "batch_size": 4, "verbose": False}

LLAMA = LlamaConfig(
    vocab_size=96, hidden_size=128, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
)  # fmt: skip
GPT2 = GPT2Config(vocab_size=96, n_embd=64, n_layer=2, n_head=4, n_positions=64)


@pytest.fixture
def tokens():
    return torch.randint(0, 96, (8, 16), generator=torch.Generator().manual_seed(3))


def save_model(config, directory):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.08)
            elif "bias" in name:
                parameter.normal_(0, 0.5)
    model.save_pretrained(directory)
    return directory


SCHEMES = {
    "W4A16": ({"scheme": "W4A16"}, "auto_round:auto_gptq"),
    "W4A16 asym g32": ({"scheme": "W4A16", "sym": False, "group_size": 32}, "auto_round:auto_awq"),
    "W8A16 rows": ({"scheme": "W8A16", "group_size": -1}, "auto_round:auto_gptq"),
    "W3A16 asym": ({"scheme": "W3A16", "sym": False, "group_size": 64}, "auto_round"),
    "W2A16G32": ({"scheme": "W2A16G32"}, "auto_round:auto_gptq"),
    "W5A16 g32": ({"scheme": "W5A16", "group_size": 32}, "auto_round:int_dense"),
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("iters", [0, 3])
@torch.no_grad()
def test_what_is_loaded_is_what_was_tuned(tmp_path, tokens, scheme, iters):
    options, packing = SCHEMES[scheme]
    directory = save_model(LLAMA, tmp_path / "model")
    job = AutoRound(directory, dataset=tokens, iters=iters, **options, **QUICK)
    tuned, _ = job.quantize_and_save(tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert config["packing_format"] == packing
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto", device_map="cpu")
    packed = {n: m for n, m in loaded.named_modules() if isinstance(m, PackedLinear)}
    assert len(packed) == 14
    for name, module in packed.items():
        assert torch.equal(module.decode(torch.bfloat16), tuned.get_submodule(name).weight), name
    assert torch.equal(loaded(tokens).logits, tuned(tokens).logits)


@torch.no_grad()
def test_weights_stored_the_other_way_round(tmp_path, tokens):
    """GPT-2 keeps [in, out]; the file holds the layout every runtime reads, and the model computes the same."""
    directory = save_model(GPT2, tmp_path / "model")
    job = AutoRound(directory, scheme="W4A16", group_size=32, dataset=tokens, iters=2, **QUICK)
    tuned, _ = job.quantize_and_save(tmp_path / "out")
    stored = load_file(tmp_path / "out/model.safetensors")
    assert stored["transformer.h.0.attn.c_attn.qweight"].shape == (64 // 8, 192)
    assert "transformer.h.0.attn.c_attn.bias" in stored
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    name = "transformer.h.1.mlp.c_proj"
    assert torch.equal(loaded.get_submodule(name).decode(torch.bfloat16), tuned.get_submodule(name).weight.T)
    # The same weights through another kernel (addmm against linear), so bfloat16 sums may end one step apart.
    torch.testing.assert_close(loaded(tokens).logits, tuned(tokens).logits, rtol=2**-6, atol=2**-5)


def test_existing_code_word_for_word(tokens):
    path, dataloader = MODEL, DataLoader(tokens, batch_size=2)
    ar = AutoRound(path, bits=4, group_size=128, data_type="int", dataset=dataloader, iters=2, nsamples=2)
    model, layer_config = ar.quantize()
    assert layer_config["model.layers.0.self_attn.q_proj"]["bits"] == 4
    assert torch.isfinite(model(tokens).logits).all()


def test_float16_and_float32_models_keep_their_dtype(tmp_path, tokens):
    for dtype in (torch.float16, torch.float32):
        model = AutoModelForCausalLM.from_config(LLAMA, dtype=dtype)
        job = AutoRound(model, scheme="W4A16", dataset=tokens, iters=2, **QUICK)
        job.quantize_and_save(tmp_path / str(dtype), format="auto_round")
        assert load_file(tmp_path / str(dtype) / "model.safetensors")["lm_head.weight"].dtype == dtype
        assert model.lm_head.weight.dtype == model.model.layers[0].mlp.up_proj.weight.dtype == dtype


def test_mixed_bits_are_told_per_layer(tmp_path, tokens):
    directory = save_model(LLAMA, tmp_path / "model")
    job = AutoRound(
        directory, scheme="W4A16", dataset=tokens, iters=0, **QUICK,
        layer_config={"down_proj": {"bits": 8, "group_size": 32}, "layers.0.self_attn": {"bits": 16}},
    )  # fmt: skip
    job.quantize_and_save(tmp_path / "out")
    extra = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]["extra_config"]
    assert extra["model.layers.1.mlp.down_proj"]["bits"] == 8
    assert extra["model.layers.0.self_attn.q_proj"]["bits"] == 16
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert isinstance(loaded.model.layers[0].self_attn.q_proj, torch.nn.Linear)
    assert loaded.model.layers[1].mlp.down_proj.scheme.group_size == 32


@pytest.mark.slow
@torch.no_grad()
def test_tuning_a_trained_model_brings_it_closer_to_the_original(tmp_path):
    """A few iterations on real text; how much full runs gain is measured in benchmarks, not here."""
    text = TEXT.read_text(encoding="utf-8")[:120_000]
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    original = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    held_out = torch.randint(0, 4096, (4, 64), generator=torch.Generator().manual_seed(0))
    wanted = original(held_out).logits.log_softmax(-1)
    distance = {}
    for name, options in {
        "plain": {"iters": 0, "disable_opt_rtn": True},
        "searched": {"iters": 0},
        "tuned": {"iters": 20, "lr": 0.01},
    }.items():
        job = AutoRound(
            MODEL, scheme="W3A16", dataset=tmp_path / "text.txt", nsamples=32, seqlen=128, verbose=False, **options
        )
        model, _ = job.quantize()
        got = model(held_out).logits.float().log_softmax(-1)
        distance[name] = torch.nn.functional.kl_div(got, wanted, log_target=True, reduction="batchmean").item()
    assert distance["tuned"] < distance["searched"] < distance["plain"]
