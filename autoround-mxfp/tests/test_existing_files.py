# SPDX-License-Identifier: Apache-2.0
"""Files call this layout by a name that other families use as well, earlier ones by its own; both load."""

import json

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from auto_round import AutoRound

CONFIG = LlamaConfig(
    vocab_size=60, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=1, max_position_embeddings=64,
)  # fmt: skip


@torch.no_grad()
def test_both_names_are_understood(tmp_path):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIG, dtype=torch.bfloat16).save_pretrained(tmp_path / "model")
    job = AutoRound(tmp_path / "model", scheme="MXFP4", iters=0, disable_opt_rtn=True, verbose=False)
    model, _ = job.quantize_and_save(tmp_path / "out")
    file = tmp_path / "out" / "config.json"
    config = json.loads(file.read_text())
    # vLLM 0.32 refuses every other one.
    assert config["quantization_config"]["packing_format"] == "auto_round:llm_compressor"
    for name in ("auto_round:llm_compressor", "auto_round:mx_fp"):
        config["quantization_config"]["packing_format"] = name
        file.write_text(json.dumps(config))
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        for layer in job.plan("auto_round").quantized:
            decoded = loaded.get_submodule(layer.name).decode(torch.bfloat16)
            assert torch.equal(decoded, model.get_submodule(layer.name).weight), layer.name
