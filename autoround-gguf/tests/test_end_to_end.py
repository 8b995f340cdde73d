# SPDX-License-Identifier: Apache-2.0
"""The repository's trained model under every preset, in llama.cpp: what runs there is what was tuned here."""

from pathlib import Path

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from auto_round import AutoRound
from auto_round_gguf.mixtures import PRESETS

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL = REPOSITORY / "autoround-core/demo/models/pep-llama-7m"
TEXT = REPOSITORY / "autoround-core/demo/text"
VOCABULARY = 4096


@pytest.fixture(scope="module")
def calibration(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "calibration.txt"
    path.write_text((TEXT / "peps-calib.txt").read_text(encoding="utf-8")[:30_000], encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def ids():
    text = (TEXT / "peps-test.txt").read_text(encoding="utf-8")[2000:2400]
    return AutoTokenizer.from_pretrained(MODEL)(text)["input_ids"]


def as_in_file(model, path):
    """Give a quantized model the embeddings and the output that the file has."""
    tensors = {t.name: t for t in gguf.GGUFReader(path).tensors}
    for module, name in ((model.get_input_embeddings(), "token_embd"), (model.get_output_embeddings(), "output")):
        found = tensors[f"{name}.weight"]
        module.weight.data = torch.from_numpy(gguf.quants.dequantize(found.data, found.tensor_type))
    return tensors


QUICK = ("Q4_0", "Q8_0", "Q2_K_S", "Q3_K_M", "Q4_K_M")


@pytest.mark.parametrize(
    "preset", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in PRESETS]
)
@torch.no_grad()
def test_every_preset_runs_in_llama_cpp(tmp_path, calibration, ids, llama_cpp, preset):
    job = AutoRound(MODEL, scheme=f"GGUF:{preset}", dataset=calibration, iters=0, nsamples=8, seqlen=64, verbose=False)
    model, _ = job.quantize_and_save(tmp_path / "out", format=f"gguf:{preset.lower()}")
    path = tmp_path / "out" / f"pep-llama-7m-{preset}.gguf"
    model = model.float()
    tensors = as_in_file(model, path)
    # Weights first, exactly: the file holds what the model computes with (rows of q and k in their other order).
    for name, layer in (("ffn_down", "mlp.down_proj"), ("attn_v", "self_attn.v_proj")):
        found = tensors[f"blk.3.{name}.weight"]
        weight = model.get_submodule(f"model.layers.3.{layer}").weight
        decoded = torch.from_numpy(gguf.quants.dequantize(found.data, found.tensor_type)).bfloat16().float()
        assert torch.equal(decoded, weight), name
    wanted = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    got = llama_cpp(path).log_probabilities(ids, VOCABULARY)
    # llama.cpp quantizes activations to 8 bits in front of every matrix, which moves log probabilities of this model
    # by 0.07 to 0.18 (0.0025 with weights left in float32), whatever the type of the weights.
    assert (got - wanted).abs().max() < 0.25
    assert (wanted.exp() * (wanted - got)).sum() < 0.002


@torch.no_grad()
def test_a_tuned_model_runs_in_llama_cpp(tmp_path, calibration, ids, llama_cpp):
    job = AutoRound(MODEL, scheme="GGUF:Q2_K_S", dataset=calibration, iters=4, nsamples=8, seqlen=64, verbose=False)
    model, _ = job.quantize_and_save(tmp_path / "out", format="gguf")
    path = tmp_path / "out/pep-llama-7m-Q2_K_S.gguf"
    model = model.float()
    as_in_file(model, path)
    wanted = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    llama = llama_cpp(path)
    assert (llama.log_probabilities(ids, VOCABULARY) - wanted).abs().max() < 0.25  # as above


def test_text_becomes_the_same_tokens(tmp_path, calibration, llama_cpp):
    job = AutoRound(MODEL, scheme="GGUF:Q8_0", dataset=calibration, iters=0, disable_opt_rtn=True, verbose=False)
    job.quantize_and_save(tmp_path / "out", format="gguf")
    llama = llama_cpp(tmp_path / "out/pep-llama-7m-Q8_0.gguf")
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    text = (TEXT / "peps-test.txt").read_text(encoding="utf-8")
    for piece in (text[:2000], text[50_000:52_000], "naïve déjà 12345  \n\n\tx_y='é' 😀"):
        assert llama.tokens(piece) == tokenizer(piece, add_special_tokens=False)["input_ids"]


@torch.no_grad()
def test_transformers_reads_the_file_too(tmp_path, calibration, ids):
    job = AutoRound(MODEL, scheme="GGUF:Q4_K_M", dataset=calibration, iters=0, nsamples=8, seqlen=64, verbose=False)
    model, _ = job.quantize_and_save(tmp_path / "out", format="gguf")
    model = model.float()
    as_in_file(model, tmp_path / "out/pep-llama-7m-Q4_K_M.gguf")
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", gguf_file="pep-llama-7m-Q4_K_M.gguf", dtype=torch.float32
    )
    ids = torch.tensor([ids])
    wanted, got = model(ids).logits.log_softmax(-1), loaded(ids).logits.log_softmax(-1)
    # Our model was rounded to the bfloat16 it is kept in; the file is not.
    assert (got - wanted).abs().max() < 0.05


@torch.no_grad()
def test_the_container_keeps_codes(tmp_path, calibration, ids):
    """Block types lie in the generic container as their named codes, and load again as they were."""
    job = AutoRound(MODEL, scheme="GGUF:Q3_K_M", dataset=calibration, iters=0, nsamples=8, seqlen=64, verbose=False)
    model, _ = job.quantize_and_save(tmp_path / "out", format="auto_round")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto", device_map="cpu")
    ids = torch.tensor([ids])
    assert torch.equal(loaded(ids).logits, model(ids).logits)
