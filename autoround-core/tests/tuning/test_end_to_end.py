# SPDX-License-Identifier: Apache-2.0
"""Steps of all blocks together: what they minimise, that codes follow, when they are given up, and going on."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from auto_round import AutoRound
from auto_round.errors import UnknownOptionError
from auto_round.run import job
from auto_round.tuning import end_to_end
from auto_round.tuning.end_to_end import Checkpoint
from auto_round.tuning.options import TuningOptions

pytestmark = pytest.mark.slow

BITS = {"bits": 3, "iters": 0}


def divergence(model, original, ids, mask=None):
    """Mean KL over tokens, in nats, in float64: p log p - p log q."""
    with torch.no_grad():
        log_p, log_q = (torch.log_softmax(m(input_ids=ids).logits.double(), -1) for m in (original, model))
    each = (log_p.exp() * (log_p - log_q)).sum(-1)
    return (each if mask is None else each[mask]).mean().item()


@pytest.fixture
def original(stored):
    """The model of some architecture, as it was."""
    return lambda architecture="llama": AutoModelForCausalLM.from_pretrained(stored(architecture), dtype="auto").eval()


@pytest.fixture
def calibration():
    return torch.randint(4, 250, (16, 32), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def outcomes():
    """Outcomes of the steps that runs took, in order."""
    return []


@pytest.fixture
def quantized(stored, registry, calibration, outcomes):
    """A model quantized in memory with some options."""

    def run(architecture="llama", dataset=calibration, **options):
        made = AutoRound(
            stored(architecture), scheme="STEPS4", dataset=dataset, registry=registry, batch_size=4,
            seqlen=32, verbose=False, **{"nsamples": len(dataset), **BITS, **options},
        )  # fmt: skip
        model, _ = made.quantize()
        outcomes.extend(filter(None, [made.report.end_to_end]))
        return model

    return run


@pytest.mark.parametrize("architecture", ["llama", "tied", "gpt2", "qwen3_moe"])
def test_the_loss_is_how_far_a_model_is_from_its_original(
    quantized, original, calibration, outcomes, monkeypatch, architecture
):
    monkeypatch.setattr(end_to_end, "STEP", 0.01)
    plain, tuned = quantized(architecture), quantized(architecture, e2e_iters=24)
    before, after = (divergence(m, original(architecture), calibration) for m in (plain, tuned))
    # All samples are in the slice. Blocks compute in bfloat16, whose products torch adds up in another order for other
    # batches: a thousandth of the divergence.
    assert outcomes[0].before == pytest.approx(before, rel=1e-2)
    assert outcomes[0].after == pytest.approx(after, rel=1e-2)
    assert after < 0.9 * before


def apart(model, wanted, ids):
    """How far hidden states after the blocks are apart, relative to what is wanted."""
    with torch.no_grad():
        found, wanted = (m(input_ids=ids, output_hidden_states=True).hidden_states[1:] for m in (model, wanted))
    each = [
        ((g - h).float().square().sum(-1) / h.float().square().sum(-1)).mean()
        for h, g in zip(wanted, found, strict=True)
    ]
    return sum(each).item() / len(each)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_hidden_states_come_nearer_too(quantized, original, calibration, monkeypatch, architecture):
    """By themselves: nothing is asked of the distributions here, and what is learnt stays, whatever they are."""
    monkeypatch.setattr(end_to_end, "STEP", 0.01)
    monkeypatch.setattr(end_to_end, "divergence", lambda _wanted, found: 0.0 * found.sum())
    monkeypatch.setattr(end_to_end._Loss, "mean", lambda _self, _samples, said: float(said == "blocks"))
    models = quantized(architecture), quantized(architecture, e2e_iters=24)
    before, after = (apart(model, original(architecture), calibration) for model in models)
    assert after < 0.9 * before


def test_a_model_that_does_not_tell_its_hidden_states(quantized, outcomes, monkeypatch):
    forward = LlamaForCausalLM.forward

    def silent(self, *args, **options):
        answer = forward(self, *args, **options)
        answer.hidden_states = None
        return answer

    monkeypatch.setattr(LlamaForCausalLM, "forward", silent)
    monkeypatch.setattr(end_to_end, "STEP", 0.01)
    quantized(e2e_iters=8)
    assert outcomes[0].after < outcomes[0].before


def test_padding_does_not_count(quantized, original, outcomes):
    ids = [torch.randint(4, 250, (n,), generator=torch.Generator().manual_seed(n)) for n in (32, 20, 12, 32)]
    plain = quantized(dataset=ids)
    quantized(dataset=ids, e2e_iters=1)
    each = [divergence(plain, original(), sample[None]) * len(sample) for sample in ids]
    assert outcomes[0].before == pytest.approx(sum(each) / sum(map(len, ids)), rel=1e-2)


def test_steps_that_help_nothing_leave_blocks_as_they_were(quantized, outcomes, monkeypatch):
    monkeypatch.setattr(end_to_end, "STEP", 3.0)  # rounds at random
    monkeypatch.setattr(end_to_end, "SCALE_STEP", 0.3)
    plain, tuned = quantized(), quantized(e2e_iters=2)
    assert outcomes[0].after > outcomes[0].before
    for name, weight in plain.state_dict().items():
        assert torch.equal(tuned.state_dict()[name], weight), name


@pytest.mark.parametrize("recipe", ["published", "best"])
@pytest.mark.parametrize("lr", [0.05, 0.5])
def test_they_go_on_from_what_blocks_were_left_with(quantized, monkeypatch, recipe, lr):
    """Without a step worth mentioning the rounding is that of the blocks, compensated or not, last steps or not."""
    monkeypatch.setattr(end_to_end, "STEP", 0.0)
    monkeypatch.setattr(end_to_end, "SCALE_STEP", 0.0)
    monkeypatch.setattr(end_to_end._Loss, "mean", lambda _self, _samples, said: float(said == "blocks"))
    plain, tuned = (quantized(iters=8, lr=lr, recipe=recipe, e2e_iters=n) for n in (0, 1))
    for name, weight in plain.state_dict().items():
        assert torch.equal(tuned.state_dict()[name], weight), name


@pytest.mark.parametrize("done", [1, 5])
def test_a_run_that_was_cut_off_ends_with_the_same_bits(quantized, monkeypatch, done):
    monkeypatch.setattr(end_to_end, "SAVED", 0.0)
    saved = {}

    def with_checkpoint(checkpoint):
        monkeypatch.setattr(job, "Checkpoint", lambda: checkpoint)
        return quantized(e2e_iters=6).state_dict()

    def save(step, state):
        saved[step] = {name: tensor.clone() for name, tensor in state.items()}

    whole = with_checkpoint(Checkpoint(save=save))
    assert sorted(saved) == [1, 2, 3, 4, 5, 6]
    rest = with_checkpoint(Checkpoint(done, saved[done]))
    assert all(torch.equal(rest[name], tensor) for name, tensor in whole.items())


def test_what_is_loaded_is_what_was_tuned(stored, registry, calibration, tmp_path):
    run = AutoRound(
        stored("llama"), scheme="STEPS4", dataset=calibration, registry=registry, nsamples=16, batch_size=4, seqlen=32,
        iters=4, e2e_iters=4, quant_lm_head=True, low_cpu_mem_usage=True, verbose=False,
    )  # fmt: skip
    model, _ = run.quantize_and_save(tmp_path / "out", format="fake")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_a_model_in_float16_is_as_it_was_but_for_its_layers(stored, registry, calibration):
    run = AutoRound(
        stored("llama", torch.float16), scheme="STEPS4", dataset=calibration, registry=registry, nsamples=16,
        batch_size=4, seqlen=32, iters=0, e2e_iters=2, verbose=False,
    )  # fmt: skip
    model, layers = run.quantize()
    before = AutoModelForCausalLM.from_pretrained(stored("llama", torch.float16), dtype="auto").state_dict()
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float16
        assert name.removesuffix(".weight") in layers or torch.equal(tensor, before[name])


def test_not_with_low_memory():
    with pytest.raises(UnknownOptionError, match="low_memory and e2e_iters exclude each other"):
        TuningOptions(low_memory=True, e2e_iters=10)
