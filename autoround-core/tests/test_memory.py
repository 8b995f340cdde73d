# SPDX-License-Identifier: Apache-2.0
"""What a run is said to need, by hand; that it is what a run takes was measured on models of real size."""

import pytest
import torch

from auto_round import AutoRound
from auto_round.errors import UnknownOptionError
from auto_round.run.memory import peak_memory

from .conftest import make_model, tiny_config


def test_what_tuning_needs_is_added_up(monkeypatch, registry, tmp_path):
    monkeypatch.setattr("auto_round.tuning.stack.SMALL", 0)  # as in a model with large layers
    make_model(tiny_config()).bfloat16().save_pretrained(tmp_path)
    job = AutoRound(tmp_path, scheme="STEPS4", registry=registry, nsamples=4, seqlen=16, batch_size=2, iters=1)
    need = job.memory_needed()
    block = 32 * 32 * 2 + 2 * 16 * 32 + 3 * 32 * 48  # q, o; k, v; gate, up, down
    # The gradient is that of one layer at a time, an up projection say, or of all where passes add up.
    assert need.block == 2 * block + (5 + 3 + 3) * block + 4 * 32 * 48
    options = {"iters": 1, "gradient_accumulate_steps": 2, "seqlen": 16}
    several = AutoRound(tmp_path, scheme="STEPS4", registry=registry, **options).memory_needed()
    assert several.block == 2 * block + (5 + 3 + 3 + 4) * block
    thrifty = AutoRound(tmp_path, scheme="STEPS4", registry=registry, low_memory=True, iters=1, seqlen=16)
    assert thrifty.memory_needed().block == (2 + 5) * block + 4 * 32 * 48
    words = 256  # of the vocabulary
    outside = 2 * (2 * words * 32)  # embedding and output, bfloat16
    assert need.outside == 0  # they are let go of
    head = AutoRound(tmp_path, scheme="STEPS4", quant_lm_head=True, registry=registry, iters=1, seqlen=16)
    assert head.memory_needed().outside == outside
    monkeypatch.setattr("auto_round.run.memory.LEARNING", -7)
    assert job.memory_needed().block == outside + 2 * block  # but first they are there, with a block
    assert need.activations == 3 * 2 * (4 * 16 * 32) + 24 * 2 * (2 * 16 * 32)
    assert need.process <= peak_memory()
    assert need.total == need.process + need.outside + need.block + need.activations


def test_activations_on_a_device_of_their_own_take_no_memory_of_the_cpu(stored, registry):
    options = {"scheme": "STEPS4", "registry": registry, "nsamples": 4, "seqlen": 16, "batch_size": 2, "iters": 1}
    for where in (None, "disk", "cpu", "device"):
        job = AutoRound(stored("llama"), activations=where, **options)
        for device in ("cpu", "cuda"):
            job.device = torch.device(device)
            within = 24 * 2 * (2 * 16 * 32)
            between = 0 if (where, device) == ("device", "cuda") else 3 * 2 * (4 * 16 * 32)
            assert job.memory_needed().activations == between + within
    with pytest.raises(UnknownOptionError, match="disk, cpu, device"):
        AutoRound(stored("llama"), activations="gpu", **options)


def test_steps_of_all_blocks_need_the_whole_model(registry, tmp_path, monkeypatch):
    make_model(tiny_config()).bfloat16().save_pretrained(tmp_path)
    options = {"scheme": "STEPS4", "registry": registry, "nsamples": 4, "seqlen": 16, "batch_size": 2, "iters": 1}
    need = AutoRound(tmp_path, e2e_iters=1, **options).memory_needed()
    weights = 2 * (32 * 32 * 2 + 2 * 16 * 32 + 3 * 32 * 48)  # of two blocks
    kept = 2 * (2 * 256 * 32)  # embedding and output, bfloat16
    # As it was; offset, gradient, what gradients add up to, code, what it decodes to, what its backward pass needs.
    assert need.block == 2 * weights + kept + (2 + 4 + 4 + 4 + 1 + 3 + 3) * weights
    # Of two blocks: all of one that computes, half of one that waits; and the logits.
    of_batch = 1.5 * (24 * 2 * (2 * 16 * 32)) + 5 * 2 * (2 * 16 * 256)
    assert need.activations == 3 * 2 * (4 * 16 * 32) + of_batch
    # A batch that has too many logits is run in parts.
    half = 3 * 2 * (4 * 16 * 32) + of_batch / 2
    monkeypatch.setattr("auto_round.tuning.whole_pass.LOGITS", 1)
    assert AutoRound(tmp_path, e2e_iters=1, **options).memory_needed().activations == half


def test_rounding_needs_a_few_layers(registry, tmp_path):
    make_model(tiny_config()).bfloat16().save_pretrained(tmp_path)
    options = {"registry": registry, "iters": 0, "disable_opt_rtn": True}
    need = AutoRound(tmp_path, scheme="STEPS4", workers=1, **options).memory_needed()
    # Twice two sets, the largest being gate and up.
    assert need.block == 2 * 2 * (2 * 2 * 32 * 48)
    assert (need.outside, need.activations) == (0, 0)
    assert AutoRound(tmp_path, scheme="STEPS4", workers=4, **options).memory_needed().block > need.block


def test_experts_are_counted_as_the_stacks_they_are_tuned_in(stored, registry, monkeypatch):
    monkeypatch.setattr("auto_round.tuning.stack.SMALL", 0)  # as in a model with large layers
    job = AutoRound(stored("qwen3_moe"), scheme="STEPS4", registry=registry, iters=1, seqlen=16)
    expert = 3 * 16 * 32
    block = 2 * 32 * 32 + 2 * 16 * 32 + 4 * expert  # q, o; k, v; experts
    # Gates and ups of all four are one stack, and larger than any layer.
    assert job.memory_needed().block == 13 * block + 4 * 4 * 2 * 16 * 32
    monkeypatch.setattr(type(registry.data_type("steps")), "stacks", lambda *_: False)
    assert job.memory_needed().block == 13 * block + 4 * 32 * 32


def test_too_little_memory_is_said_with_what_needs_less(stored, registry, monkeypatch, caplog, tmp_path):
    options = {"registry": registry, "dataset": torch.zeros(8, 16, dtype=torch.long), "nsamples": 8, "seqlen": 16}
    job = AutoRound(stored("llama"), scheme="STEPS4", iters=1, low_cpu_mem_usage=True, verbose=False, **options)
    need = job.memory_needed()
    free = need.total - need.process
    monkeypatch.setattr("auto_round.run.memory.free_memory", lambda: free)
    assert job.memory_short() is None
    monkeypatch.setattr("auto_round.run.memory.free_memory", lambda: None)  # the system does not tell
    assert job.memory_short() is None
    monkeypatch.setattr("auto_round.run.memory.free_memory", lambda: free - 1)
    assert "--low-memory" in job.memory_short()
    job.quantize_and_save(tmp_path / "out", "fake")
    assert "may become very slow or be killed; --low-memory" in caplog.text
    for more, told in (({"low_memory": True}, "smaller batches"), ({"recipe": "best"}, "smaller batches"),
                       ({"iters": 0, "disable_opt_rtn": True}, "fewer workers")):  # fmt: skip
        other = AutoRound(stored("llama"), scheme="STEPS4", **{"iters": 1, **more}, **options)
        monkeypatch.setattr("auto_round.run.memory.free_memory", lambda: 1)
        assert told in other.memory_short()
        assert "--low-memory" not in other.memory_short()


def test_a_model_that_stays_in_memory_is_not_warned_of(stored, registry, monkeypatch, caplog):
    monkeypatch.setattr("auto_round.run.memory.free_memory", lambda: 1)
    AutoRound(
        stored("llama"), scheme="STEPS4", iters=0, disable_opt_rtn=True, registry=registry, verbose=False
    ).quantize()
    assert "killed" not in caplog.text
