# SPDX-License-Identifier: Apache-2.0
"""What a forward pass without weights tells: who shares an input, and who only helps to choose."""

import pytest
import torch
from transformers import (
    AfmoeConfig,
    AutoModelForCausalLM,
    DeepseekV32Config,
    Gemma4TextConfig,
    GlmMoeDsaConfig,
    HunYuanMoEV1Config,
)

from auto_round import AutoRound
from auto_round.model.experts import split_experts
from auto_round.model.structure import find_structure
from auto_round.model.watched import watch

COMMON = {
    "vocab_size": 60, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "num_experts_per_tok": 2, "max_position_embeddings": 64, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LATENT = {
    "q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 32,
    "n_routed_experts": 4, "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1, "index_topk": 2,
    "index_head_dim": 32, "index_n_heads": 2,
}  # fmt: skip
HEADS = {"head_dim": 32, "moe_intermediate_size": 32}
INDEXER = ("self_attn.indexer.wq_b", "self_attn.indexer.wk", "self_attn.indexer.weights_proj")
CHOOSE = {
    "afmoe": (AfmoeConfig(**COMMON, **HEADS, num_experts=4, num_dense_layers=1), ("mlp.router.gate",)),
    "gemma4": (
        Gemma4TextConfig(
            **COMMON, **HEADS, num_experts=4, top_k_experts=2, enable_moe_block=True, global_head_dim=32,
            vocab_size_per_layer_input=60, hidden_size_per_layer_input=32,
        ),
        ("router.proj",),
    ),
    "hunyuan": (HunYuanMoEV1Config(**COMMON, head_dim=32, num_experts=4, moe_topk=2), ("mlp.gate.wg",)),
    "deepseek": (DeepseekV32Config(**COMMON, **LATENT, first_k_dense_replace=1), INDEXER),
    # Its attention hands on what its indexer chose, and is none that chooses for that.
    "glm": (GlmMoeDsaConfig(**COMMON, **LATENT, mlp_layer_types=["dense", "sparse"]), INDEXER),
}  # fmt: skip


@pytest.mark.parametrize("kind", CHOOSE)
def test_routers_and_indexers_are_told_from_what_computes(kind):
    config, leaves = CHOOSE[kind]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config).eval()
    split_experts(model)
    names = [info.name for info in find_structure(model).linears]
    wanted = {name for name in names if name.endswith(leaves)}
    assert wanted
    assert watch(model, names).choosers.keys() == wanted


def test_they_stay_unless_they_are_named_themselves(installed, tmp_path):
    config, leaves = CHOOSE["deepseek"]
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)

    def bits(layer_config):
        plan = AutoRound(tmp_path, scheme="STEPS4", layer_config=layer_config, verbose=False).plan()
        return {layer.name.rpartition("layers.1.self_attn.")[2]: layer.scheme.bits for layer in plan.quantized}

    indexer = {leaf.removeprefix("self_attn.") for leaf in leaves}
    assert indexer.isdisjoint(bits({}))
    whole = bits({"self_attn": {"bits": 8}})
    assert indexer.isdisjoint(whole)
    assert whole["q_a_proj"] == 8
    assert bits({"indexer": {"bits": 8}}).keys() >= indexer
    assert bits({"indexer.wk": {"bits": 8}}).keys() & indexer == {"indexer.wk"}
