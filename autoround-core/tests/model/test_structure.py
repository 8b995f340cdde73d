# SPDX-License-Identifier: Apache-2.0
"""Blocks and linear layers, on architectures that call them by many names."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, FalconConfig, GPT2Config, GPTNeoXConfig, OPTConfig, Qwen3Config

from auto_round.errors import ModelError
from auto_round.model.structure import find_structure

WIDTH = {"num_hidden_layers": 3, "hidden_size": 16, "num_attention_heads": 2, "vocab_size": 40}
SMALL = {
    "gpt2": (GPT2Config(n_layer=3, n_embd=16, n_head=2, vocab_size=40), "transformer.h", 4),
    "gpt_neox": (GPTNeoXConfig(**WIDTH, intermediate_size=32), "gpt_neox.layers", 4),
    "opt": (OPTConfig(**WIDTH, ffn_dim=32, word_embed_proj_dim=16), "model.decoder.layers", 6),
    "falcon": (FalconConfig(**WIDTH), "transformer.h", 4),
    "qwen3": (Qwen3Config(**WIDTH, num_key_value_heads=1, intermediate_size=32), "model.layers", 7),
}


@pytest.mark.parametrize("kind", SMALL)
def test_blocks_are_found_by_structure(kind):
    config, block_list, per_block = SMALL[kind]
    with torch.device("meta"):
        found = find_structure(AutoModelForCausalLM.from_config(config))
    assert found.blocks == tuple(f"{block_list}.{i}" for i in range(3))
    assert found.block_list == block_list
    assert sum(info.block is not None for info in found.linears) == 3 * per_block
    assert [info.name.rpartition(".")[2] for info in found.linears if info.block is None] in (
        ["lm_head"],
        ["embed_out"],
    )


def test_conv1d_weights_are_told_apart():
    with torch.device("meta"):
        found = find_structure(AutoModelForCausalLM.from_config(SMALL["gpt2"][0]))
    attention = next(info for info in found.linears if info.name.endswith("c_attn"))
    assert attention.transposed
    assert attention.shape == (48, 16)


def test_tied_heads_are_known_before_they_are_tied():
    with torch.device("meta"):
        found = find_structure(AutoModelForCausalLM.from_config(SMALL["gpt2"][0]))
    assert next(info for info in found.linears if info.block is None).tied


def test_the_larger_of_two_lists_is_the_decoder():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.vision = nn.ModuleList([nn.Linear(2, 2) for _ in range(9)])
            self.text = nn.ModuleList(
                [nn.Sequential(nn.Linear(16, 16), nn.ModuleList([nn.Linear(16, 16)])) for _ in range(2)]
            )

    assert find_structure(Two()).blocks == ("text.0", "text.1")


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ModelError, match="no list of repeated blocks"):
        find_structure(nn.Sequential(nn.Linear(2, 2)))
