# SPDX-License-Identifier: Apache-2.0
"""Microscaling through the whole road: tune, write, load through transformers, compute the same."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

import auto_round_mxfp
import auto_round_mxfp.microscaling as family
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


@pytest.fixture
def tokens():
    return torch.randint(0, 96, (8, 16), generator=torch.Generator().manual_seed(3))


def save_model(directory):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LLAMA, dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.08)
    model.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("scheme", sorted(auto_round_mxfp.schemes().keys() - {"MXFP4_MOE"}))  # no experts here
@torch.no_grad()
def test_what_is_loaded_is_what_was_tuned(tmp_path, tokens, scheme):
    job = AutoRound(save_model(tmp_path / "model"), scheme=scheme, dataset=tokens, iters=3, **QUICK)
    tuned, _ = job.quantize_and_save(tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert config["packing_format"] == ("auto_round:mx_int" if "INT" in scheme else "auto_round:llm_compressor")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto", device_map="cpu")
    packed = {n: m for n, m in loaded.named_modules() if isinstance(m, PackedLinear)}
    assert len(packed) == 14
    for name, module in packed.items():
        assert torch.equal(module.decode(torch.bfloat16), tuned.get_submodule(name).weight), name
    assert torch.equal(loaded(tokens).logits, tuned(tokens).logits)


@pytest.mark.parametrize("name", ["mx_fp6e3m2", "mx_fp8e5m2_rceil", "mx_fp4_rceil_v2", "mx_int2"])
@torch.no_grad()
def test_data_types_that_no_scheme_names(tmp_path, tokens, name):
    bits = family.__getattr__(name).element(None).bits
    job = AutoRound(
        save_model(tmp_path / "model"), data_type=name, bits=bits, group_size=32, dataset=tokens, iters=0, **QUICK
    )
    tuned, _ = job.quantize_and_save(tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert torch.equal(loaded(tokens).logits, tuned(tokens).logits)


@pytest.mark.parametrize("scheme", ["MXFP4A16", "MXFP6A16", "MXFP8A16", "MXFP4_RCEIL", "MXFP8"])
@torch.no_grad()
def test_transformers_and_compressed_tensors_load_the_tuned_weights(tmp_path, tokens, scheme):
    job = AutoRound(save_model(tmp_path / "model"), scheme=scheme, dataset=tokens, iters=2, **QUICK)
    tuned, _ = job.quantize_and_save(tmp_path / "out", format="llm_compressor")
    config = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "compressed-tensors"
    assert config["ignore"] == ["lm_head"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    found = loaded(tokens).logits
    layers = [name for name, module in tuned.named_modules() if name.endswith("_proj")]
    assert len(layers) == 14
    for name in layers:  # decompressed by their library at the first forward pass
        weight = tuned.get_submodule(name).weight
        assert torch.equal(loaded.get_submodule(name).weight, weight), name
    if scheme.endswith("A16"):  # it simulates activations with a rule of its own for their scales
        assert torch.equal(found, tuned(tokens).logits)


def test_a_width_that_is_no_multiple_of_a_block_still_has_a_file(tmp_path, tokens):
    """The last block of a row is shorter; only the generic layout holds it."""
    config = LlamaConfig(**{**LLAMA.to_dict(), "intermediate_size": 144})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "model")
    job = AutoRound(tmp_path / "model", scheme="MXFP4A16", dataset=tokens, iters=0, **QUICK)
    tuned, _ = job.quantize_and_save(tmp_path / "out")
    stored = load_file(tmp_path / "out/model.safetensors")
    assert stored["model.layers.0.mlp.down_proj.codes_scale"].shape == (128, 5)
    assert stored["model.layers.0.mlp.up_proj.weight_packed"].shape == (144, 64)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert torch.equal(loaded(tokens).logits, tuned(tokens).logits)


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
            MODEL, scheme="MXFP4A16", dataset=tmp_path / "text.txt", nsamples=32, seqlen=128, verbose=False, **options
        )
        model, _ = job.quantize()
        got = model(held_out).logits.float().log_softmax(-1)
        distance[name] = torch.nn.functional.kl_div(got, wanted, log_target=True, reduction="batchmean").item()
    assert distance["tuned"] < distance["searched"] < distance["plain"]
