# SPDX-License-Identifier: Apache-2.0
"""Fused experts, taken apart: the same answers as transformers', every layer found, nothing lost on the way to disk."""

import logging

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GptOssConfig, MixtralConfig, Qwen3MoeConfig

from auto_round import AutoRound
from auto_round.errors import ModelError
from auto_round.model.experts import SplitExperts, fused_tensors, split_experts
from auto_round.model.opened import open_model

pytestmark = pytest.mark.slow

COMMON = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "num_experts_per_tok": 2, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 32}
CONFIGS = {
    "qwen3_moe": Qwen3MoeConfig(**COMMON, moe_intermediate_size=16, num_experts=4),
    "mixtral": MixtralConfig(**COMMON, num_local_experts=4),
    "gpt_oss": GptOssConfig(**COMMON, num_local_experts=4, rope_parameters=YARN),
}
IN_FILES = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
"""What files of Mixtral call the layers of an expert, and loaded models after them."""
IDS = torch.randint(3, 60, (4, 16), generator=torch.Generator().manual_seed(0))


def as_tuned(name):
    """What the model that was tuned calls a layer of the loaded one."""
    module, _, leaf = name.rpartition(".")
    return f"{module}.{IN_FILES.get(leaf, leaf)}"


def make(kind):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind], experts_implementation="eager").eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_the_answers_stay(kind):
    model = make(kind)
    before = model(IDS).logits
    split_experts(model)
    assert sum(isinstance(m, SplitExperts) for m in model.modules()) == 2
    # Sums of the same numbers in another order (a bias added to a product, or inside it), float32.
    torch.testing.assert_close(model(IDS).logits, before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", CONFIGS)
def test_they_can_be_put_together_again(kind):
    model = make(kind)
    before = {name: p.clone() for name, p in model.named_parameters() if ".experts." in name}
    split_experts(model)
    joined = {name: tensor for name, tensor, _ in fused_tensors(model, set())}
    assert joined.keys() == before.keys()
    assert all(torch.equal(joined[name], before[name]) for name in before)


def test_weights_are_views():
    model = make("qwen3_moe")
    addresses = {p.untyped_storage().data_ptr() for p in model.parameters()}
    split_experts(model)
    assert {p.untyped_storage().data_ptr() for p in model.parameters()} == addresses


def test_every_expert_is_seen_to_share_its_input_within_itself(tmp_path):
    make("qwen3_moe").save_pretrained(tmp_path)
    opened = open_model(tmp_path)
    expert = "model.layers.1.mlp.experts.3"
    assert opened.shared_inputs[f"{expert}.up_proj"] == (f"{expert}.gate_proj", f"{expert}.up_proj")
    assert opened.shared_inputs[f"{expert}.down_proj"] == (f"{expert}.down_proj",)


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_quantized_experts_load_as_they_were_tuned(kind, installed, tmp_path, monkeypatch):
    monkeypatch.setattr("auto_round.tuning.block.SCARCE", 4)  # or none of these would be tuned
    make(kind).bfloat16().save_pretrained(tmp_path / "model")
    job = AutoRound(
        tmp_path / "model", scheme="STEPS4", dataset=IDS, iters=2, nsamples=4, seqlen=16, batch_size=2, verbose=False,
        layer_config={"layers.1.mlp.experts": {"bits": 16}},
    )  # fmt: skip
    model, _ = job.quantize_and_save(tmp_path / "out")
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    loaded.set_experts_implementation("eager")
    quantized = [n for n, m in loaded.named_modules() if type(m).__name__ == "PackedLinear" and ".experts." in n]
    assert len(quantized) == 4 * len(job.model.get_submodule("model.layers.0.mlp.experts.0")._modules)
    assert all(name.startswith("model.layers.0.") for name in quantized)
    for name in quantized:
        assert torch.equal(
            loaded.get_submodule(name).decode(torch.bfloat16), model.get_submodule(as_tuned(name)).weight
        )
    # Experts left alone run fused there and one by one here: bfloat16 sums in two orders.
    torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits, rtol=0.02, atol=0.02 * model(IDS).logits.std())


def test_files_keep_the_names_of_the_original(installed, tmp_path):
    make("gpt_oss").save_pretrained(tmp_path / "model")
    original = load_file(tmp_path / "model" / "model.safetensors")
    job = AutoRound(
        tmp_path / "model", scheme="STEPS4", iters=0, disable_opt_rtn=True, verbose=False,
        layer_config={"experts": {"bits": 16}},
    )  # fmt: skip
    job.quantize_and_save(tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    experts = {name for name in original if ".experts." in name}
    assert experts == {name for name in written if ".experts." in name}
    assert all(torch.equal(original[name], written[name]) for name in experts)


def test_experts_without_tokens_are_reported(installed, tmp_path, caplog):
    model = make("qwen3_moe")
    with torch.no_grad():
        # Scores are products with this matrix; norms put nothing negative in front of them.
        model.model.layers[0].mlp.gate.weight.zero_()
        model.model.layers[0].mlp.gate.weight[:2] = torch.eye(32)[:2] * 1e-3
    model.save_pretrained(tmp_path)
    job = AutoRound(tmp_path, scheme="STEPS4", dataset=IDS[:1, :1], iters=1, nsamples=1, seqlen=1, verbose=False)
    with caplog.at_level(logging.WARNING):
        job.quantize()
    # One token is sent to two of four experts.
    unseen = job.report.blocks[0].unseen
    assert len(unseen) == 2 * 3
    assert all(".experts." in name for name in unseen)
    assert "no calibration token reached 6 layers (model.layers.0.mlp.experts." in caplog.text


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_from_files_to_files_and_back_a_block_at_a_time(kind, installed, tmp_path, caplog):
    """Read block by block, tuned, written, loaded by transformers; experts that see few tokens are said and rounded."""
    make(kind).bfloat16().save_pretrained(tmp_path / "model")
    job = AutoRound(
        tmp_path / "model", scheme="STEPS4", dataset=IDS, iters=2, nsamples=4, seqlen=16, batch_size=2, verbose=False,
        low_cpu_mem_usage=True,
    )  # fmt: skip
    with caplog.at_level(logging.WARNING):
        job.quantize_and_save(tmp_path / "out")
    for block in job.report.blocks:
        assert block.scarce
        assert all(".experts." in name for name in (*block.scarce, *block.unseen))
        assert f"few calibration tokens reached {len(block.scarce)} layers ({block.scarce[0]} and" in caplog.text
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    kept, _ = AutoRound(
        tmp_path / "model", scheme="STEPS4", dataset=IDS, iters=2, nsamples=4, seqlen=16, batch_size=2, verbose=False
    ).quantize()
    weights = {n: m.weight for n, m in kept.named_modules() if hasattr(m, "weight")}
    packed = {as_tuned(n): m for n, m in loaded.named_modules() if type(m).__name__ == "PackedLinear"}
    assert {n for n in packed if ".experts." in n} == {n for n in weights if ".experts." in n}
    assert all(torch.equal(layer.decode(torch.bfloat16), weights[name]) for name, layer in packed.items())


def test_experts_whose_tensors_would_be_fused_on_loading_are_refused(installed, tmp_path, monkeypatch):
    make("qwen3_moe").bfloat16().save_pretrained(tmp_path / "model")
    job = AutoRound(tmp_path / "model", scheme="STEPS4", iters=0, disable_opt_rtn=True, verbose=False)
    job.quantize_and_save(tmp_path / "out")
    monkeypatch.setattr("auto_round.inference.packed_linear.PackedLinear.stored_names", ("weight", "scale"))
    with pytest.raises(ModelError, match="does not load single experts whose tensors are called `weight`"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "out")
