# SPDX-License-Identifier: Apache-2.0
"""A small model with routed experts and random weights, for runtimes to load: this repository carries no trained one.

usage: random_experts.py MODEL_TYPE TOKENIZER OUTPUT

MODEL_TYPE is one of transformers', with experts (qwen2_moe, mixtral); TOKENIZER a directory that has one.
"""

from __future__ import annotations

import sys

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

SIZES = {
    "hidden_size": 256, "intermediate_size": 256, "moe_intermediate_size": 128, "shared_expert_intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
    "num_experts_per_tok": 2, "max_position_embeddings": 512, "initializer_range": 0.08,
}  # fmt: skip
EXPERTS = {"num_experts": 8, "num_local_experts": 8}
"""Configs take the one name or the other."""


def main() -> None:
    """Make it."""
    model_type, tokenizer_from, output = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_from)
    known = AutoConfig.for_model(model_type)
    sizes = {name: value for name, value in (SIZES | EXPERTS).items() if hasattr(known, name)}
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, vocab_size=len(tokenizer), **sizes)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(output)
    tokenizer.save_pretrained(output)


if __name__ == "__main__":
    main()
