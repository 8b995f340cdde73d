# SPDX-License-Identifier: Apache-2.0
"""Attention in steps, where that is quicker, computes the same, and only for as long as data flows."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from auto_round import AutoRound
from auto_round.calibration import attention
from auto_round.calibration.attention import attention_in_steps, samples_kept, scores_kept
from auto_round.calibration.inputs import capture_block_inputs
from auto_round.model.opened import open_model
from auto_round.model.structure import find_structure

from .test_inputs import CONFIGS, make

CPU = torch.device("cpu")


def test_scores_are_kept_where_they_are_few_and_bfloat16_on_a_cpu():
    model = make("llama")
    heads = model.config.num_attention_heads
    length = round((attention.LARGEST / heads) ** 0.5)
    assert scores_kept(model, torch.bfloat16, CPU, 1, length) == heads * length**2
    assert samples_kept(model, torch.bfloat16, CPU, length) == 1
    assert scores_kept(model, torch.bfloat16, CPU, 2, length) == 0
    assert scores_kept(model, torch.float32, CPU, 1, length) == 0
    assert scores_kept(model, torch.bfloat16, torch.device("cuda"), 1, length) == 0
    assert scores_kept(nn.Linear(1, 1), torch.bfloat16, CPU, 1, length) == 0
    assert scores_kept(make("falcon"), torch.bfloat16, CPU, 1, 16) == 0
    with attention_in_steps(model):  # as if the user had said so
        assert scores_kept(model, torch.bfloat16, CPU, 1, length) == 0


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_blocks_answer_the_same_in_steps(kind):
    model = make(kind)
    fused = model.config._attn_implementation
    structure = find_structure(model)
    ids = torch.randint(0, 60, (2, 9), generator=torch.Generator().manual_seed(0))

    def answer():
        recorded = capture_block_inputs(model, structure.block_list, ids, batch_size=2)
        hidden = recorded.hidden
        for name, call in zip(structure.blocks, recorded.calls[2], strict=True):
            hidden = call.run(model.get_submodule(name), hidden)
        return hidden

    expected = answer()
    with attention_in_steps(model):
        # Falcon has classes for its kinds of attention, chosen when it is built.
        assert model.config._attn_implementation == (fused if kind == "falcon" else "eager")
        # float32: one rounding of 2^-24 for each of some ten operations on numbers around 1.
        torch.testing.assert_close(answer(), expected, rtol=1e-5, atol=1e-5)
    assert model.config._attn_implementation == fused


def test_what_the_user_chose_stays(stored):
    model = AutoModelForCausalLM.from_pretrained(stored("llama"), attn_implementation="flex_attention")
    with attention_in_steps(model):
        assert model.config._attn_implementation == "flex_attention"
    with attention_in_steps(nn.Linear(1, 1)):
        pass


def test_an_error_leaves_the_model_as_it_was():
    model = make("llama")
    with pytest.raises(KeyError), attention_in_steps(model):
        raise KeyError
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "wanted"), [("bfloat16", "eager"), ("float32", "sdpa")])
@pytest.mark.parametrize("iters", [0, 1])
def test_blocks_of_files_and_of_objects_run_in_steps(dtype, wanted, iters, registry, stored, monkeypatch):
    directory = stored("llama", getattr(torch, dtype))
    model = AutoModelForCausalLM.from_pretrained(directory)
    seen = set()
    module = type(model.model.layers[0].self_attn)
    forward = module.forward

    def watched(self, *args, **kwargs):
        if kwargs["hidden_states"].shape[1] >= 16:  # not where a plan looks which layers share an input
            seen.add(self.config._attn_implementation)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(module, "forward", watched)
    tokens = torch.randint(3, 60, (4, 16), generator=torch.Generator().manual_seed(0))
    for source in (directory, model):
        seen.clear()
        rounder = AutoRound(source, scheme="STEPS4", registry=registry, dataset=tokens, iters=iters, seqlen=16,
                            batch_size=2, nsamples=4, recipe="best", verbose=False)  # fmt: skip
        quantized, _ = rounder.quantize()
        assert seen == {wanted}
        assert {m.config._attn_implementation for m in quantized.modules() if hasattr(m, "config")} == {"sdpa"}


def test_who_changes_the_config_of_an_opened_model_means_all_blocks(stored):
    opened = open_model(stored("llama"))
    opened.load()
    opened.model.set_attn_implementation("eager")
    assert {layer.self_attn.config._attn_implementation for layer in opened.model.model.layers} == {"eager"}
