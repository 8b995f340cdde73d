# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of compressed-tensors through plain transformers, which knows nothing of this package."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, LlamaConfig

from auto_round import AutoRound

LLAMA = LlamaConfig(
    vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
)  # fmt: skip
QUICK = {"nsamples": 4, "batch_size": 4, "verbose": False}

SCHEMES = {
    **{f"W{bits}A16": {"scheme": f"W{bits}A16G32"} for bits in (2, 3, 5, 6, 8)},
    "W4A16 tuned": {"scheme": "W4A16G32", "iters": 2},
    **{f"W{bits}A16 asym": {"scheme": f"W{bits}A16G32", "sym": False} for bits in (3, 4, 8)},
    "W4A16 rows": {"scheme": "W4A16", "group_size": -1},
    "W4A16 restricted": {"scheme": "W4A16G32", "data_type": "int_sym_gptq"},
    "INT8": {"scheme": "INT8"},
    "INT8 static": {"scheme": "INT8", "act_dynamic": False, "act_group_size": 0},
    "INT8 static asym": {
        "scheme": "INT8",
        "act_dynamic": False,
        "act_group_size": 0,
        "act_sym": False,
        "act_data_type": "int",
    },
    "INT8 tensor": {"scheme": "INT8", "act_group_size": 0},
    "INT4": {"scheme": "INT4"},
    "W4A8": {"scheme": "INT8", "bits": 4, "group_size": 32},
    "mixed": {"scheme": "W4A16G32", "layer_config": {"down_proj": {"bits": 8}, "layers.0.mlp.up_proj": {"bits": 16}}},
}


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, 96, (4, 16), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LLAMA)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.08)
    directory = tmp_path_factory.mktemp("model")
    for dtype in (torch.float32, torch.bfloat16):
        model.to(dtype).save_pretrained(directory / str(dtype))
    return directory


def quantize(directory, out, tokens, name):
    options = {"iters": 0, "disable_opt_rtn": True, **SCHEMES[name]}
    tuned, _ = AutoRound(directory, dataset=tokens, **options, **QUICK).quantize_and_save(out, "llm_compressor")
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    assert "lm_head" in config["ignore"]
    return tuned


pytestmark = [pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning"), pytest.mark.slow]


# Decoding all at once, transformers 5.23 takes the first config group for every layer.
@pytest.mark.parametrize("name", [name for name in SCHEMES if name != "mixed"])
@torch.no_grad()
def test_the_weights_that_are_loaded_are_those_that_were_tuned(model_dir, tmp_path, tokens, name):
    tuned = quantize(model_dir / str(torch.bfloat16), tmp_path / "out", tokens, name)
    layers = [n for n, m in tuned.named_modules() if isinstance(m, torch.nn.Linear)]
    weights_only = CompressedTensorsConfig(dequantize=True)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto", quantization_config=weights_only)
    for layer in layers:
        assert torch.equal(loaded.get_submodule(layer).weight, tuned.get_submodule(layer).weight), layer


CASES = [
    (name, dtype)
    for name, options in SCHEMES.items()
    for dtype in (torch.float32, torch.bfloat16)
    # transformers 5.23 makes room for zero points of another shape than the library's own; and the library simulates
    # quantized activations in the dtype of the model, scales included, where no runtime that computes with them does.
    if options.get("sym", True) and (dtype == torch.float32 or "A16" in options["scheme"])
]


@pytest.mark.parametrize(("name", "dtype"), CASES)
@torch.no_grad()
def test_the_model_that_is_loaded_computes_as_the_tuned_one(model_dir, tmp_path, tokens, name, dtype):
    tuned = quantize(model_dir / str(dtype), tmp_path / "out", tokens, name)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert torch.equal(loaded(tokens).logits, tuned(tokens).logits)
