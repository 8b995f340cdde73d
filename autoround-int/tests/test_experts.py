# SPDX-License-Identifier: Apache-2.0
"""Models with routed experts: mixed widths, and files that load with every expert as it was tuned."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, MixtralConfig, Qwen3MoeConfig

from auto_round import AutoRound
from auto_round_int.integer import IntegerDataType

pytestmark = pytest.mark.slow

COMMON = {
    "vocab_size": 60, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "num_experts_per_tok": 2, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CONFIGS = {
    "qwen3_moe": Qwen3MoeConfig(**COMMON, moe_intermediate_size=32, num_experts=4),
    "mixtral": MixtralConfig(**COMMON, num_local_experts=4),
}
IDS = torch.randint(3, 60, (4, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model_dir(tmp_path, request):
    torch.manual_seed(0)
    config = CONFIGS[getattr(request, "param", "qwen3_moe")]
    AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@torch.no_grad()
def test_experts_get_four_bits_and_the_rest_eight(model_dir, tmp_path):
    job = AutoRound(model_dir, scheme="W4A16_MIXED", iters=2, dataset=IDS, nsamples=4, seqlen=16, verbose=False)
    bits = {layer.name: layer.scheme.bits for layer in job.plan("auto_round").quantized}
    assert {b for n, b in bits.items() if ".experts." in n} == {4}
    assert {b for n, b in bits.items() if ".self_attn." in n} == {8}
    tuned, _ = job.quantize_and_save(tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name in bits:
        packed = loaded.get_submodule(name)
        assert torch.equal(packed.decode(torch.bfloat16), tuned.get_submodule(name).weight), name
    assert torch.equal(loaded(IDS).logits, tuned(IDS).logits)


@pytest.mark.parametrize("model_dir", CONFIGS, indirect=True)
@torch.no_grad()
def test_compressed_experts_load_dequantized(model_dir, tmp_path):
    job = AutoRound(
        model_dir, scheme="W4A16", group_size=32, iters=2, dataset=IDS, nsamples=4, seqlen=16, verbose=False
    )
    tuned, _ = job.quantize_and_save(tmp_path / "out", format="llm_compressor")
    with pytest.warns(UserWarning, match="quantization_config"):  # that it merges ours with the file's
        loaded = AutoModelForCausalLM.from_pretrained(
            tmp_path / "out", quantization_config=CompressedTensorsConfig(dequantize=True)
        )
    ignored = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["ignore"]
    for block in range(2):
        # vLLM has a linear layer there, and would look for its codes.
        assert f"model.layers.{block}.mlp.gate" in ignored
        name = f"model.layers.{block}.mlp.experts"
        ours, theirs = tuned.get_submodule(name), loaded.get_submodule(name)
        assert torch.equal(ours.joined("gate_up_proj"), theirs.gate_up_proj)
        assert torch.equal(ours.joined("down_proj"), theirs.down_proj)


@pytest.mark.parametrize("options", [{"group_size": 32}, {}, {"group_size": -1}, {"sym": False}, {"scheme": "INT4"}])
def test_experts_tuned_together_are_those_tuned_one_by_one(model_dir, monkeypatch, options):
    """To the bit; groups of 128 are longer than a row here."""
    monkeypatch.setattr("auto_round.tuning.block.SCARCE", 4)

    def tune():
        search = {"disable_opt_rtn": options.get("group_size") != 32}  # it takes most of the time
        given = {
            "scheme": "W4A16",
            **search,
            "iters": 4,
            "lr": 0.1,
            "dataset": IDS,
            "nsamples": 4,
            "seqlen": 16,
            **options,
        }
        job = AutoRound(model_dir, verbose=False, batch_size=2, **given)
        model, _ = job.quantize()
        assert any(block.kept_step for block in job.report.blocks)
        return dict(model.named_parameters())

    together = tune()
    monkeypatch.setattr(IntegerDataType, "stacks", lambda *_: False)
    alone = tune()
    assert [name for name in alone if not torch.equal(alone[name], together[name])] == []
