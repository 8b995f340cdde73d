# SPDX-License-Identifier: Apache-2.0
"""Experts that are tuned with one call for many of them."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from auto_round import AutoRound
from auto_round_mxfp.microscaling import Microscaling

CONFIG = Qwen3MoeConfig(
    vocab_size=60, hidden_size=64, intermediate_size=96, moe_intermediate_size=32, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=1, head_dim=32, num_experts=4, num_experts_per_tok=2,
    max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
IDS = torch.randint(3, 60, (4, 16), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("scheme", ["MXFP4", "MXFP8"])
def test_they_are_those_tuned_one_by_one(monkeypatch, scheme):
    """To the bit, with blocks of 32 that never span two rows."""
    monkeypatch.setattr("auto_round.tuning.block.SCARCE", 4)

    def tune():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIG).bfloat16()
        options = {"iters": 4, "lr": 0.1, "dataset": IDS, "nsamples": 4, "seqlen": 16, "batch_size": 2}
        job = AutoRound(model, scheme=scheme, verbose=False, **options)
        tuned, _ = job.quantize()
        assert any(block.kept_step for block in job.report.blocks)
        return dict(tuned.named_parameters())

    together = tune()
    monkeypatch.setattr(Microscaling, "stacks", lambda *_: False)
    alone = tune()
    assert [name for name in alone if not torch.equal(alone[name], together[name])] == []
