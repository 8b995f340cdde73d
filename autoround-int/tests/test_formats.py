# SPDX-License-Identifier: Apache-2.0
"""Formats `auto_gptq` and `auto_awq`: their tensors by the published definitions, their configs, what they refuse."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, LlamaConfig

from auto_round import AutoRound
from auto_round.errors import PlanError

LLAMA = LlamaConfig(
    vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
)  # fmt: skip
QUICK = {"nsamples": 4, "batch_size": 4, "verbose": False}
AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # the four bits of a word in which output channel i of eight lies


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, 96, (4, 16), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LLAMA, dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.08)
    directory = tmp_path_factory.mktemp("model") / "llama"
    model.save_pretrained(directory)
    return directory


def bits_of(words, bits, places=None):
    """int32 [rows, words] to the codes in each row, by arithmetic on whole numbers."""
    rows = []
    for row in words.tolist():
        stream = sum((word & 0xFFFFFFFF) << (32 * i) for i, word in enumerate(row))
        count = len(row) * 32 // bits
        order = range(count) if places is None else [i // 8 * 8 + places[i % 8] for i in range(count)]
        rows.append([stream >> (bits * i) & ((1 << bits) - 1) for i in order])
    return torch.tensor(rows, dtype=torch.float32)


def gptq_weight(tensors, name, bits):
    """scale[g_idx] (code - zero point), zero points stored minus one; [out, in]."""
    qweight, qzeros, scales, groups = (tensors[f"{name}.{part}"] for part in ("qweight", "qzeros", "scales", "g_idx"))
    codes, zeros = bits_of(qweight.T, bits).T, bits_of(qzeros, bits) + 1
    return (scales[groups].float() * (codes - zeros[groups])).T.bfloat16()


def awq_weight(tensors, name):
    qweight, qzeros, scales = (tensors[f"{name}.{part}"] for part in ("qweight", "qzeros", "scales"))
    codes, zeros = bits_of(qweight, 4, AWQ_PLACES), bits_of(qzeros, 4, AWQ_PLACES)
    size = codes.shape[0] // zeros.shape[0]
    zeros, scales = zeros.repeat_interleave(size, 0), scales.float().repeat_interleave(size, 0)
    return (scales * (codes - zeros)).T.bfloat16()


def written(folder):
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    return load_file(folder / "model.safetensors"), config


@pytest.mark.parametrize("options", [{"iters": 2}, {"iters": 0, "sym": False}], ids=["sym", "asym"])
def test_formats_of_one_tuned_model_hold_one_weight(model_dir, tmp_path, tokens, options):
    job = AutoRound(model_dir, scheme="W4A16G32", dataset=tokens, **options, **QUICK)
    tuned, _ = job.quantize()
    read = {"auto_awq": awq_weight}
    if options.get("sym", True):
        read["auto_gptq"] = lambda tensors, name: gptq_weight(tensors, name, 4)
    for name in read:
        job.save_quantized(tmp_path / name, format=name)
    layers = [n for n, m in tuned.named_modules() if isinstance(m, torch.nn.Linear) and "layers" in n]
    assert len(layers) == 14
    for name, weight_of in read.items():
        tensors, _ = written(tmp_path / name)
        assert tensors["lm_head.weight"].dtype == torch.bfloat16
        for layer in layers:
            assert torch.equal(weight_of(tensors, layer), tuned.get_submodule(layer).weight), (name, layer)


@pytest.mark.parametrize(("scheme", "bits"), [("W2A16G32", 2), ("W3A16G32", 3), ("W8A16", 8)])
def test_gptq_at_every_width(model_dir, tmp_path, tokens, scheme, bits):
    job = AutoRound(model_dir, scheme=scheme, dataset=tokens, iters=0, disable_opt_rtn=True, group_size=-1, **QUICK)
    tuned, _ = job.quantize_and_save(tmp_path / "out", format="auto_gptq")
    tensors, config = written(tmp_path / "out")
    assert config["bits"] == bits
    layer = "model.layers.1.mlp.down_proj"
    assert tensors[f"{layer}.g_idx"].tolist() == [0] * 96
    assert torch.equal(gptq_weight(tensors, layer, bits), tuned.get_submodule(layer).weight)


def test_what_gptq_readers_are_told(model_dir, tmp_path, tokens):
    job = AutoRound(
        model_dir, scheme="W4A16G32", dataset=tokens, iters=0, disable_opt_rtn=True, **QUICK,
        layer_config={"down_proj": {"bits": 8}, "layers.0.mlp.up_proj": {"bits": 16}, "lm_head": {"bits": 4}},
    )  # fmt: skip
    job.quantize_and_save(tmp_path / "out", format="auto_gptq")
    tensors, config = written(tmp_path / "out")
    modules = config.pop("modules_in_block_to_quantize")[0]
    assert config.pop("autoround_version")
    assert config == {
        "quant_method": "gptq", "checkpoint_format": "gptq", "bits": 4, "group_size": 32, "sym": True,
        "desc_act": False, "lm_head": True,
        "dynamic": {
            r"+:^model\.layers\.0\.mlp\.down_proj$": {"bits": 8, "group_size": 32},
            r"+:^model\.layers\.1\.mlp\.down_proj$": {"bits": 8, "group_size": 32},
            r"-:^model\.layers\.0\.mlp\.up_proj$": {},
        },
    }  # fmt: skip
    assert len(modules) == 13
    assert "lm_head" not in modules
    assert "model.layers.0.mlp.up_proj.weight" in tensors
    assert "lm_head.qweight" in tensors
    parsed = AutoConfig.from_pretrained(tmp_path / "out").quantization_config
    assert parsed["bits"] == 4


def test_what_awq_readers_are_told(model_dir, tmp_path, tokens):
    job = AutoRound(
        model_dir, scheme="W4A16G32", dataset=tokens, iters=0, disable_opt_rtn=True, **QUICK,
        layer_config={"layers.0.mlp.up_proj": {"bits": 16}},
    )  # fmt: skip
    job.quantize_and_save(tmp_path / "out", format="auto_awq")
    _, config = written(tmp_path / "out")
    assert config == {
        "quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm",
        "modules_to_not_convert": ["model.layers.0.mlp.up_proj", "lm_head"],
    }  # fmt: skip


REFUSALS = [
    ("auto_gptq", {"sym": False}, "take auto_awq"),
    ("auto_gptq", {"bits": 5}, "2, 3, 4 and 8 bits, not 5"),
    ("auto_gptq", {"group_size": 128}, "no whole number of groups of 128"),
    ("auto_gptq", {"group_size": 0}, "group_size -1 for whole rows"),
    ("auto_gptq", {"act_bits": 8}, "take format llm_compressor"),
    ("auto_awq", {"bits": 8}, "4 bits, not 8"),
    ("auto_awq", {"layer_config": {"lm_head": {"bits": 4}}}, "outside the blocks"),
    ("auto_awq", {"layer_config": {"up_proj": {"group_size": 16}}}, "one group_size for all layers, not 16 and 32"),
    ("auto_round:auto_gptq", {"sym": False}, "not int_asym"),
    ("llm_compressor", {"group_size": 128}, "no multiple of group_size 128"),
]


@pytest.mark.parametrize(("name", "options", "reason"), REFUSALS)
def test_what_a_format_cannot_hold_is_said_at_once(model_dir, name, options, reason):
    with pytest.raises(PlanError, match=reason):
        AutoRound(model_dir, **{"scheme": "W4A16G32", **options}).plan(name)


def test_weights_kept_the_other_way_round_are_refused():
    model = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=96, n_embd=64, n_layer=1, n_head=4, n_positions=64))
    with pytest.raises(PlanError, match="take format auto_round"):
        AutoRound(model, scheme="W4A16G32").plan("auto_gptq")


def test_a_width_that_is_no_multiple_of_32_is_refused(tmp_path):
    config = LlamaConfig(**{**LLAMA.to_diff_dict(), "intermediate_size": 72})
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(PlanError, match="multiples of 32"):
        AutoRound(model, scheme="W4A16", group_size=-1).plan("auto_gptq")


NOTES = [
    ("auto_round", {"bits": 5}, "vllm will not load .*bits=5, and it takes 2, 3, 4, 8"),
    ("auto_round", {"bits": 3, "sym": False}, "vllm will not load .*bits=3"),
    ("auto_round", {"group_size": 16}, "vllm will not load .*group_size=16"),
    ("auto_gptq", {"bits": 3}, "vllm will not load .*bits=3, and it takes 4, 8"),
    ("auto_gptq", {"group_size": 48}, "transformers will not load .*group_size=48"),
    ("auto_awq", {"group_size": 48, "sym": False}, "vllm will not load .*group_size=48"),
    ("auto_gptq", {"layer_config": {"q_proj": {"bits": 8}}}, "together, in one scheme"),
    ("llm_compressor", {"layer_config": {"gate_proj": {"bits": 16}}}, "together, in one scheme"),
    ("llm_compressor", {"sym": False}, r"transformers loads .* with .*CompressedTensorsConfig\(dequantize=True\)"),
    ("auto_round", {"act_bits": 8}, "vllm will not load .*act_bits=8"),
    ("auto_round", {"data_type": "int_sym_gptq"}, "vllm will not load .*data_type=int_sym_gptq, and it takes int"),
]


@pytest.mark.parametrize(("name", "options", "note"), NOTES)
def test_what_will_not_load_where_is_said_beforehand(name, options, note):
    config = LlamaConfig(**{**LLAMA.to_diff_dict(), "hidden_size": 192, "intermediate_size": 192, "head_dim": 48})
    model = AutoModelForCausalLM.from_config(config)
    notes = AutoRound(model, **{"scheme": "W4A16G32", **options}).plan(name).notes
    assert any(re.search(note, told) for told in notes), notes


@pytest.mark.parametrize(
    ("name", "scheme"),
    [(name, "W4A16G32") for name in ("auto_round", "auto_gptq", "auto_awq", "llm_compressor")]
    + [("llm_compressor", "INT8")],
)
def test_what_loads_everywhere_needs_no_note(model_dir, name, scheme):
    assert AutoRound(model_dir, scheme=scheme).plan(name).notes == ()


def test_leaving_everything_as_it_is_is_no_job(model_dir, tmp_path, tokens):
    with pytest.raises(PlanError, match="no layer of .* would be quantized"):
        AutoRound(model_dir, scheme="BF16", dataset=tokens, **QUICK).quantize_and_save(tmp_path / "out")
    plan = AutoRound(model_dir, scheme="W4A16G32", layer_config={"o_proj": "BF16"}).plan("auto_gptq")
    assert sum(layer.quantized for layer in plan.layers) == 12
