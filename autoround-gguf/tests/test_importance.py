# SPDX-License-Identifier: Apache-2.0
"""Importance in and out of a run: what one run observes serves another, and llama.cpp's files serve it too."""

import pytest
import torch
import transformers as tf

from auto_round import AutoRound
from auto_round.errors import CalibrationError
from auto_round.tuning.result import LayerResult
from auto_round_gguf.imatrix import ImportanceFile, read_imatrix, write_imatrix
from auto_round_gguf.importance import LayerImportance, importance_file

pytestmark = pytest.mark.slow

READ, WRITE = "AUTO_ROUND_GGUF_IMATRIX", "AUTO_ROUND_GGUF_SAVE_IMATRIX"
WIDTH, INNER = 256, 512


@pytest.fixture
def quantized(tmp_path):
    """Quantizes one small model; returns the bytes of its file."""

    def run(where, scheme="GGUF:Q4_K_M", dataset=None, **options):
        torch.manual_seed(0)
        config = tf.LlamaConfig(
            vocab_size=64, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=2, num_attention_heads=4
        )
        model = tf.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        job = AutoRound(model, scheme=scheme, dataset=dataset, nsamples=4, iters=0, verbose=False, **options)
        job.quantize_and_save(tmp_path / where, format="gguf")
        return next((tmp_path / where).iterdir()).read_bytes()

    return run


@pytest.fixture
def tokens():
    return torch.randint(0, 64, (4, 32), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["imatrix.gguf", "imatrix.dat"])
def test_what_one_run_observed_serves_another(tmp_path, monkeypatch, quantized, tokens, name):
    monkeypatch.setenv(WRITE, str(tmp_path / name))
    observed = quantized("observed", dataset=tokens)
    monkeypatch.delenv(WRITE)
    found = read_imatrix(tmp_path / name).means
    roles = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    assert set(found) == {f"blk.{block}.{role}.weight" for block in range(2) for role in roles}
    assert {len(means) for name, means in found.items() if "ffn_down" in name} == {INNER}

    monkeypatch.setenv(READ, str(tmp_path / name))
    given = quantized("given")  # and no calibration data at all
    assert b"quantize.imatrix.entries_count" in given
    assert given[-100_000:] == observed[-100_000:]  # weights: the metadata before them tell of the file
    monkeypatch.delenv(READ)
    assert quantized("other", dataset=tokens.flip(0) // 2)[-100_000:] != observed[-100_000:]


def test_importance_is_what_goes_into_the_layer(tmp_path, monkeypatch, quantized, tokens):
    """Against the squares of inputs, seen with a hook of our own."""
    monkeypatch.setenv(WRITE, str(tmp_path / "i.gguf"))
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=64, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=2, num_attention_heads=4
    )
    model = tf.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    seen = []
    handle = model.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    with torch.no_grad():
        model(tokens)
    handle.remove()
    quantized("out", dataset=tokens)
    means = read_imatrix(tmp_path / "i.gguf").means["blk.1.ffn_down.weight"]
    wanted = seen[0].reshape(-1, INNER).square().mean(0)
    torch.testing.assert_close(means, wanted, rtol=1e-4, atol=0)  # float32 sums in another order


def test_a_file_of_another_model_is_refused(tmp_path, monkeypatch, quantized):
    write_imatrix(tmp_path / "i.gguf", ImportanceFile({"blk.0.ffn_down.weight": torch.rand(INNER + 8)}))
    monkeypatch.setenv(READ, str(tmp_path / "i.gguf"))
    with pytest.raises(CalibrationError, match="another model's: blk.0.ffn_down has 512 inputs, and 520 values"):
        quantized("out")
    monkeypatch.setenv(READ, str(tmp_path / "none.gguf"))
    with pytest.raises(CalibrationError, match=r"none.gguf is no importance file"):
        quantized("out")


def test_layers_a_file_leaves_out_are_observed(tmp_path, monkeypatch, quantized, tokens):
    write_imatrix(tmp_path / "i.gguf", ImportanceFile({"blk.0.ffn_down.weight": torch.rand(INNER)}))
    monkeypatch.setenv(READ, str(tmp_path / "i.gguf"))
    monkeypatch.setenv(WRITE, str(tmp_path / "o.gguf"))
    quantized("out", dataset=tokens)
    assert len(read_imatrix(tmp_path / "o.gguf").means) == 13


def test_experts_are_rows_of_one_entry(tmp_path):
    layers = [
        (LayerImportance("blk.0.ffn_up_exps", expert), LayerResult(None, None, None, {}, torch.full((8,), sums), count))
        for expert, sums, count in ((0, 5.0, 5), (1, 0.0, 0), (2, 12.0, 4))
    ]
    write_imatrix(tmp_path / "i.gguf", importance_file(layers, 3))
    means = read_imatrix(tmp_path / "i.gguf").means["blk.0.ffn_up_exps.weight"]
    assert means[:, 0].tolist() == [1.0, 1.0, 3.0]  # the one that saw nothing counts evenly
