# SPDX-License-Identifier: Apache-2.0
"""Which tensor gets which type: against what llama.cpp made of models of every kind, tensor by tensor."""

import json
from pathlib import Path

import pytest

from auto_round.errors import SchemeError
from auto_round.schemes import LayerPlace, QuantizationScheme
from auto_round_gguf.mixtures import PRESETS, Shape, fitting, tensor_type
from auto_round_gguf.schemes import GGUFScheme, plain_scheme
from auto_round_gguf.types import BLOCK_TYPES

MODELS = json.loads((Path(__file__).parent / "golden/llama_cpp_presets.json").read_text())["models"]


@pytest.mark.parametrize("model", MODELS)
def test_every_tensor_has_the_type_llama_cpp_gives_it(model):
    described, compared = MODELS[model], 0
    shape = Shape.of(described["config"], described["blocks"])
    for name, roles in described["presets"].items():
        for role, types in roles.items():
            for block, theirs in enumerate(types.split()):
                tensor = role if role in ("output", "token_embd") else f"blk.{block}.{role}"
                tied = described["config"]["tie_word_embeddings"]
                ours = fitting(tensor_type(PRESETS[name], tensor, shape, tied=tied), described["inputs"][role])
                assert (ours.name if ours else "f16") == theirs, (name, tensor)
                compared += 1
    assert compared > 100


def place(name, block, config=None, inputs=512, blocks=16):
    config = {"model_type": "llama", "num_attention_heads": 8, "num_key_value_heads": 2} | (config or {})
    return LayerPlace(name=name, shape=(256, inputs), block=block, blocks=blocks, config=config)


def test_a_scheme_is_its_mixture():
    scheme = GGUFScheme.of(PRESETS["Q4_K_M"])
    at = {
        "model.layers.0.self_attn.v_proj": "q6_k",
        "model.layers.2.self_attn.v_proj": "q4_k",
        "model.layers.15.mlp.down_proj": "q6_k",
        "model.layers.15.mlp.up_proj": "q4_k",
        "lm_head": "q6_k",
    }
    for name, wanted in at.items():
        block = None if name == "lm_head" else int(name.split(".")[2])
        found = scheme.for_layer(place(name, block))
        assert found.to_dict() == plain_scheme(BLOCK_TYPES[wanted]).to_dict(), name


def test_rows_that_do_not_fit_get_another_type():
    scheme = GGUFScheme.of(PRESETS["Q6_K"])
    found = scheme.for_layer(place("model.layers.0.mlp.up_proj", 0, inputs=288))
    assert found.data_type == "gguf_q8_0"
    assert scheme.for_layer(place("model.layers.0.mlp.up_proj", 0, inputs=520)).data_type == "gguf_q6_k"  # and no room


@pytest.mark.parametrize(
    ("preset", "inputs", "change", "wanted"),
    [
        ("Q4_K_M", 512, {"bits": 6}, "q6_k"),
        ("Q4_K_M", 512, {"bits": 8}, "q8_0"),
        ("Q4_K_M", 288, {"bits": 3}, "q4_0"),  # what stands in for q3_k
        ("Q8_0", 512, {"bits": 5}, "q5_0"),
        ("Q8_0", 512, {"bits": 2}, "q2_k"),
        ("Q2_K_S", 512, {"data_type": "gguf_q5_1"}, "q5_1"),
        ("Q4_0", 512, {"data_type": "gguf_q6_k"}, "q6_k"),
    ],
)
def test_bits_or_a_data_type_alone_name_a_block_type(preset, inputs, change, wanted):
    scheme = GGUFScheme.of(PRESETS[preset]).for_layer(place("model.layers.3.mlp.up_proj", 3, inputs=inputs))
    assert scheme.replace(**change).to_dict() == plain_scheme(BLOCK_TYPES[wanted]).to_dict()


def test_what_no_block_type_has_is_said():
    scheme = GGUFScheme.of(PRESETS["Q4_K_M"])
    layer = scheme.for_layer(place("model.layers.3.mlp.up_proj", 3))
    assert not layer.replace(bits=16).quantizes_weights
    with pytest.raises(SchemeError, match="no block type of 7 bits"):
        layer.replace(bits=7)
    for change in ({"bits": 3}, {"group_size": 64}, {"act_bits": 8}):
        with pytest.raises(SchemeError, match="GGUF:Q4_K_M is a mixture"):
            scheme.replace(**change)


def test_one_expert_has_the_type_of_all():
    config = {"model_type": "qwen3_moe", "num_experts": 64}
    scheme = GGUFScheme.of(PRESETS["Q2_K_MIXED"])
    found = {
        part: scheme.for_layer(place(f"model.layers.3.{part}_proj", 3, config)).data_type
        for part in ("mlp.experts.17.down", "mlp.experts.17.gate", "self_attn.q")
    }
    assert list(found.values()) == ["gguf_q2_k", "gguf_q2_k", "gguf_q4_k"]


def test_a_model_nobody_knows_gets_the_base_type():
    found = GGUFScheme.of(PRESETS["Q4_K_M"]).for_layer(place("blocks.0.v_proj", 0, {"model_type": "acme"}))
    assert found.data_type == "gguf_q4_k"


def test_presets_differ_and_say_nothing_in_files_that_others_cannot_read():
    small, medium = (GGUFScheme.of(PRESETS[n]) for n in ("Q4_K_S", "Q4_K_M"))
    assert small != medium
    assert small.to_dict() == medium.to_dict()
    assert QuantizationScheme.from_dict(medium.to_dict()).bits == 4
    assert medium.resolved().preset == medium.replace(act_bits=16).preset == "Q4_K_M"


def test_the_mixed_recipe_keeps_two_bits_for_experts():
    preset = PRESETS["Q2_K_MIXED"]
    experts = Shape(16, 4, experts=64)
    assert tensor_type(preset, "blk.3.ffn_down_exps", experts).name == "q2_k"
    assert tensor_type(preset, "blk.3.ffn_up_exps", experts).name == "q2_k"
    assert tensor_type(preset, "blk.3.attn_q", experts).name == "q4_k"
    assert tensor_type(preset, "output", experts).name == tensor_type(preset, "token_embd", experts).name == "q8_0"
    assert tensor_type(preset, "blk.3.attn_q", Shape(16)).name == "q2_k"
