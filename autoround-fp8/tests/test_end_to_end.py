# SPDX-License-Identifier: Apache-2.0
"""8-bit floats through the whole road: tune, write, load through plain transformers, compute the same."""

import functools
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, GPT2Config, LlamaConfig, Qwen3MoeConfig

from auto_round import AutoRound
from auto_round.errors import AutoRoundError, PlanError
from auto_round.inference.packed_linear import PackedLinear
from auto_round_fp8.fine_grained_input import FineGrainedInput

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL = REPOSITORY / "autoround-core/demo/models/pep-llama-7m"
TEXT = REPOSITORY / "autoround-core/demo/text/peps-calib.txt"
QUICK = {"nsamples": 8, "batch_size": 4, "verbose": False}

LLAMA = LlamaConfig(
    vocab_size=96, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
)  # fmt: skip
RAGGED = LlamaConfig(**{**LLAMA.to_dict(), "intermediate_size": 160})
GPT2 = GPT2Config(vocab_size=96, n_embd=64, n_layer=2, n_head=4, n_positions=64)

# transformers says, as a warning, that it has no kernel for these files on a CPU and decodes them.
pytestmark = [pytest.mark.filterwarnings("ignore:You passed `quantization_config`"), pytest.mark.slow]


@pytest.fixture
def tokens():
    return torch.randint(0, 96, (8, 16), generator=torch.Generator().manual_seed(3))


def save_model(directory, config=LLAMA, dtype=torch.bfloat16):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.08)
            elif "bias" in name:
                parameter.normal_(0, 0.5)
    model.save_pretrained(directory)
    return directory


def tune(source, out, tokens, format="auto_round", iters=3, **options):
    job = AutoRound(source, dataset=tokens, iters=iters, **options, **QUICK)
    tuned, _ = job.quantize_and_save(out, format=format)
    return tuned, json.loads((out / "config.json").read_text())["quantization_config"]


def load(directory, **options):
    return AutoModelForCausalLM.from_pretrained(directory, dtype="auto", device_map="cpu", **options)


def linears(model):
    """The tuned layers of a model, by name."""
    return {n: m for n, m in model.named_modules() if n.endswith("_proj")}


AUTO_ROUND = {
    "FP8_STATIC": ({"scheme": "FP8_STATIC"}, "auto_round:fp8_static"),
    "FP8_DYNAMIC": ({"scheme": "FP8_DYNAMIC"}, "auto_round:fp8"),
    "FP8_BLOCK": ({"scheme": "FP8_BLOCK"}, "auto_round:fp8"),
    "FPW8A16": ({"scheme": "FPW8A16"}, "auto_round:fp8"),
    "W4AFP8": ({"scheme": "W4AFP8"}, "auto_round:fp8_to_int"),
    "small blocks, static": (
        {"scheme": "FP8_STATIC", "group_size": (32, 48)},
        "auto_round:fp8",
    ),
    "e5m2": ({"scheme": "FPW8A16", "data_type": "fp8_e5m2", "group_size": -1}, "auto_round:codes"),
    "the e4m3 of other devices": (
        {"scheme": "FP8_STATIC", "data_type": "fp8_e4m3fnuz", "act_data_type": "fp8_e4m3fnuz"},
        "auto_round:codes",
    ),
    "no scale": ({"scheme": "FPW8A16", "data_type": "fp8_unit_scale"}, "auto_round:codes"),
    "tokens by name": ({"scheme": "FPW8A16", "act_bits": 8, "act_data_type": "fp8_dynamic"}, "auto_round:fp8"),
}


@pytest.mark.parametrize("case", AUTO_ROUND)
@pytest.mark.parametrize("iters", [0, 3])
@torch.no_grad()
def test_what_is_loaded_is_what_was_tuned(tmp_path, tokens, case, iters):
    """Weights bit for bit, and with the activations quantized as they were while tuning, the same logits."""
    options, packing = AUTO_ROUND[case]
    tuned, config = tune(save_model(tmp_path / "model", RAGGED), tmp_path / "out", tokens, iters=iters, **options)
    assert config["packing_format"] == packing
    loaded = load(tmp_path / "out")
    for name, module in linears(loaded).items():
        assert isinstance(module, PackedLinear)
        assert torch.equal(module.decode(torch.bfloat16), tuned.get_submodule(name).weight), name
    assert torch.equal(loaded(tokens).logits, tuned(tokens).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@torch.no_grad()
def test_fine_grained_files_load_in_plain_transformers(tmp_path, tokens, dtype):
    """On a CPU transformers multiplies in float32 and rounds once, to the dtype of the model, as ours does."""
    source = save_model(tmp_path / "model", dtype=dtype)
    tuned, config = tune(source, tmp_path / "out", tokens, "fp8", scheme="FP8_BLOCK")
    assert config == {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": ["lm_head"],
    }
    stored = load_file(tmp_path / "out/model.safetensors")
    assert stored["model.layers.0.mlp.up_proj.weight"].dtype == torch.float8_e4m3fn
    assert stored["model.layers.0.mlp.up_proj.weight_scale_inv"].shape == (2, 1)
    assert stored["model.layers.0.mlp.up_proj.weight_scale_inv"].dtype == torch.float32
    loaded = load(tmp_path / "out")
    assert len(linears(loaded)) == 14
    for name, module in linears(loaded).items():
        assert type(module) is torch.nn.Linear
        assert module.weight.dtype == dtype
        assert torch.equal(module.weight, tuned.get_submodule(name).weight), name
    assert torch.isfinite(loaded(tokens).logits).all()
    # Such files are input too.
    reader = FineGrainedInput.of(config)
    with safe_open(tmp_path / "out/model.safetensors", "pt") as file:
        for name in linears(loaded):
            weight, scales = f"{name}.weight", reader.scale_name(f"{name}.weight", stored)
            decoded = reader.decoded(weight, file.get_slice(weight), functools.partial(file.get_tensor, scales), dtype)
            assert torch.equal(decoded, tuned.get_submodule(name).weight), name


def test_fine_grained_leaves_out_what_was_left_out(tmp_path, tokens):
    source = save_model(tmp_path / "model")
    left = {"layers.1.self_attn": {"bits": 16}}
    tuned, config = tune(source, tmp_path / "out", tokens, "fp8", scheme="FP8_BLOCK", layer_config=left)
    attention = [f"model.layers.1.self_attn.{n}_proj" for n in "qkvo"]
    assert config["modules_to_not_convert"] == [*attention, "lm_head"]
    loaded = load(tmp_path / "out")
    for name in attention:
        assert torch.equal(loaded.get_submodule(name).weight, tuned.get_submodule(name).weight)


@pytest.mark.parametrize(
    ("options", "config", "reason"),
    [
        ({"scheme": "FP8_DYNAMIC"}, LLAMA, "blocks"),
        ({"scheme": "FP8_BLOCK", "act_bits": 16}, LLAMA, "activations of 8 bits"),
        ({"scheme": "FP8_BLOCK", "act_data_type": "fp8_e5m2"}, LLAMA, "e4m3 in dynamic groups"),
        ({"scheme": "FP8_BLOCK"}, RAGGED, "no whole number of 128 by 128 blocks"),
        ({"scheme": "FP8_BLOCK"}, GPT2, "other way round"),
        (
            {"scheme": "FP8_BLOCK", "layer_config": {"up_proj": {"group_size": (64, 64), "act_group_size": 64}}},
            LLAMA,
            "one size of blocks",
        ),
    ],
)
def test_what_fine_grained_files_cannot_hold_is_said_before_the_work(tmp_path, tokens, options, config, reason):
    source = save_model(tmp_path / "model", config)
    with pytest.raises(PlanError, match=reason):
        AutoRound(source, dataset=tokens, **options, **QUICK).plan("fp8")


COMPRESSED = {
    "FP8_STATIC": ({"scheme": "FP8_STATIC"}, "float-quantized"),
    "FP8_DYNAMIC": ({"scheme": "FP8_DYNAMIC"}, "float-quantized"),
    "FP8_BLOCK": ({"scheme": "FP8_BLOCK"}, "float-quantized"),
    "FPW8A16": ({"scheme": "FPW8A16"}, "naive-quantized"),
    "groups": ({"scheme": "FP8_DYNAMIC", "group_size": 32}, "float-quantized"),
}


@pytest.mark.parametrize("case", COMPRESSED)
@torch.no_grad()
def test_compressed_tensors_files_load_in_plain_transformers(tmp_path, tokens, case):
    """The model has a head of its own: it is named in `ignore`, so that nothing of it waits for scales (and is NaN)."""
    options, kind = COMPRESSED[case]
    tuned, config = tune(save_model(tmp_path / "model"), tmp_path / "out", tokens, "llm_compressor", **options)
    assert (config["format"], config["ignore"]) == (kind, ["lm_head"])
    stored = load_file(tmp_path / "out/model.safetensors")
    loaded = load(tmp_path / "out")
    logits = loaded(tokens).logits  # decompresses
    for name, module in linears(loaded).items():
        assert torch.equal(module.weight, tuned.get_submodule(name).weight), name
        if case == "FP8_STATIC":
            assert torch.equal(module.input_scale.float(), stored[f"{name}.input_scale"].float())
    ours = tuned(tokens).logits
    if case == "FPW8A16":
        assert torch.equal(logits, ours)
        return
    # The library divides activations by their scale in bfloat16: some fall one step away, which is as much as
    # quantizing them at all did. A scale that was not used, or not the right one, would be far off.
    original = load(tmp_path / "model")(tokens).logits
    assert torch.isfinite(logits).all()
    assert (logits - ours).float().std() < 1.5 * (original - ours).float().std()
    assert (logits - ours).float().std() < 0.15 * original.float().std()


@torch.no_grad()
def test_weights_alone_through_compressed_tensors(tmp_path, tokens):
    tuned, _ = tune(save_model(tmp_path / "model"), tmp_path / "out", tokens, "llm_compressor", scheme="FP8_BLOCK")
    loaded = load(tmp_path / "out", quantization_config=CompressedTensorsConfig(dequantize=True))
    for name, module in linears(loaded).items():
        assert torch.equal(module.weight, tuned.get_submodule(name).weight), name


@torch.no_grad()
def test_a_mixture_of_groupings_is_two_groups(tmp_path, tokens):
    mixed = {"down_proj": {"group_size": (64, 64), "act_group_size": 64}}
    tuned, config = tune(
        save_model(tmp_path / "model"),
        tmp_path / "out",
        tokens,
        "llm_compressor",
        scheme="FP8_DYNAMIC",
        layer_config=mixed,
    )
    assert {g["weights"]["strategy"] for g in config["config_groups"].values()} == {"channel", "block"}
    loaded = load(tmp_path / "out")
    loaded(tokens)
    for name, module in linears(loaded).items():
        assert torch.equal(module.weight, tuned.get_submodule(name).weight), name


@torch.no_grad()
def test_static_scales_are_observed_stored_and_used(tmp_path, tokens):
    tuned, config = tune(save_model(tmp_path / "model"), tmp_path / "out", tokens, scheme="FP8_STATIC")
    assert config["act_dynamic"] is False
    stored = load_file(tmp_path / "out/model.safetensors")
    scales = {n: t for n, t in stored.items() if n.endswith("input_scale")}
    assert len(scales) == 14
    assert all(t.dtype == torch.bfloat16 and t.shape == (1,) and 0 < t < 1 for t in scales.values())
    before = load(tmp_path / "out")(tokens).logits
    assert torch.equal(before, tuned(tokens).logits)
    # Half the scale of one layer: its inputs saturate, and the model is another one.
    name = "model.layers.0.mlp.down_proj.input_scale"
    save_file({**stored, name: stored[name] / 2}, tmp_path / "out/model.safetensors", metadata={"format": "pt"})
    assert not torch.equal(load(tmp_path / "out")(tokens).logits, before)


@torch.no_grad()
def test_weights_stored_the_other_way_round(tmp_path, tokens):
    tuned, _ = tune(save_model(tmp_path / "model", GPT2), tmp_path / "out", tokens, scheme="FP8_DYNAMIC")
    loaded = load(tmp_path / "out")
    name = "transformer.h.1.mlp.c_proj"
    assert torch.equal(loaded.get_submodule(name).decode(torch.bfloat16), tuned.get_submodule(name).weight.T)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path, tokens, value):
    source = save_model(tmp_path / "model")
    stored = load_file(source / "model.safetensors")
    stored["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(stored, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AutoRoundError, match=r"model\.layers\.1\.mlp\.up_proj"):
        tune(source, tmp_path / "out", tokens, scheme="FP8_DYNAMIC")


def test_quantized_in_memory_and_saved_afterwards(tmp_path, tokens):
    job = AutoRound(save_model(tmp_path / "model"), scheme="FP8_DYNAMIC", dataset=tokens, iters=0, **QUICK)
    model, layer_config = job.quantize()
    assert layer_config["model.layers.0.self_attn.q_proj"]["bits"] == 8
    assert torch.isfinite(model(tokens).logits).all()
    job.save_quantized(tmp_path / "out", format="auto_round")


def test_scales_are_rounded_in_memory_as_the_default_format_stores_them(tmp_path, tokens):
    source = save_model(tmp_path / "model")
    job = AutoRound(source, scheme="FP8_STATIC", dataset=tokens, iters=0, **QUICK)
    job.quantize()
    job.save_quantized(tmp_path / "out")
    job.quantize(format="llm_compressor")
    job.save_quantized(tmp_path / "other", format="llm_compressor")


@pytest.mark.slow
@torch.no_grad()
def test_search_and_tuning_bring_a_trained_model_closer_to_the_original(tmp_path):
    """A few iterations on real text; how much full runs gain is measured in benchmarks, not here."""
    (tmp_path / "text.txt").write_text(TEXT.read_text(encoding="utf-8")[:120_000], encoding="utf-8")
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
            MODEL, scheme="FPW8A16", group_size=-1, dataset=tmp_path / "text.txt", nsamples=32, seqlen=128,
            verbose=False, **options,
        )  # fmt: skip
        model, _ = job.quantize()
        got = model(held_out).logits.float().log_softmax(-1)
        distance[name] = torch.nn.functional.kl_div(got, wanted, log_target=True, reduction="batchmean").item()
    assert distance["tuned"] < distance["searched"] < distance["plain"]


@torch.no_grad()
def test_single_experts_are_stored_so_that_transformers_loads_them(tmp_path, tokens):
    """It takes a tensor `weight` of an expert for a part of one of its own, so layouts with one are not for experts."""
    config = Qwen3MoeConfig(
        vocab_size=96, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=64, moe_intermediate_size=64, num_experts=4,
        num_experts_per_tok=2,
    )  # fmt: skip
    tuned, _ = tune(save_model(tmp_path / "model", config), tmp_path / "out", tokens, scheme="FP8_DYNAMIC", iters=0)
    stored = load_file(tmp_path / "out/model.safetensors")
    assert not any(".experts." in name and name.endswith("proj.weight") for name in stored)
    assert any("q_proj.weight" in name for name in stored)
    loaded = load(tmp_path / "out")
    assert torch.equal(loaded(tokens).logits, tuned(tokens).logits)
