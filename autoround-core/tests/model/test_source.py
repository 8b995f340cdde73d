# SPDX-License-Identifier: Apache-2.0
"""Models that are missing, damaged or not what they seem: one sentence each, before anything is read for long."""

import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from auto_round.errors import ModelError
from auto_round.model.opened import open_model
from auto_round.model.source import locate, read_headers


def test_no_such_directory(tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        locate(tmp_path / "nothing")


def test_a_hub_id_that_cannot_be_reached_says_to_pass_a_directory(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="pass its directory"):
        locate("someone/some-model-that-is-nowhere")


def test_a_directory_without_config(tmp_path):
    with pytest.raises(ModelError, match=r"config\.json"):
        locate(tmp_path)


def test_a_file_instead_of_a_directory(model_dir):
    with pytest.raises(ModelError, match="is a file"):
        locate(model_dir / "config.json")


def test_pickled_weights_are_never_loaded(model_dir):
    (model_dir / "model.safetensors").unlink()
    (model_dir / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="pickled"):
        read_headers(model_dir)


def test_no_weights_at_all(model_dir):
    (model_dir / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights"):
        read_headers(model_dir)


@pytest.mark.parametrize("keep", [4, 1000, -100])
def test_a_file_that_was_cut_short(model_dir, keep):
    file = model_dir / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ModelError, match="damaged or cut short"):
        open_model(model_dir)


def test_a_shard_that_is_missing(model_dir):
    tensors = load_file(model_dir / "model.safetensors")
    (model_dir / "model.safetensors").unlink()
    index = {"weight_map": dict.fromkeys(tensors, "model-00001-of-00002.safetensors")}
    (model_dir / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="lacks 1 of 1 weight files"):
        read_headers(model_dir)


def test_a_tensor_that_is_missing(model_dir):
    tensors = load_file(model_dir / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, model_dir / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 weights of LlamaForCausalLM, model\.layers\.1\.mlp\.up_proj\.weight"):
        open_model(model_dir).load()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_named(model_dir, value):
    tensors = load_file(model_dir / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(tensors, model_dir / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight .* 1 values"):
        open_model(model_dir).load()


def test_a_model_that_is_quantized_already(model_dir):
    config = json.loads((model_dir / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "something", "bits": 4}
    (model_dir / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="quantized already"):
        open_model(model_dir)


def test_no_tokenizer_is_said_when_text_needs_one(model_dir):
    for file in model_dir.glob("tokenizer*"):
        file.unlink()
    opened = open_model(model_dir)
    with pytest.raises(ModelError, match="tokenizer"):
        opened.require_tokenizer()


def test_headers_tell_what_the_file_holds(model_dir):
    headers = read_headers(model_dir)
    stored = load_file(model_dir / "model.safetensors")
    assert {n: (tuple(t.shape), t.dtype) for n, t in stored.items()} == {
        n: (h.shape, h.dtype) for n, h in headers.items()
    }
    with (model_dir / "model.safetensors").open("rb") as file:
        header_bytes = 8 + struct.unpack("<Q", file.read(8))[0]
    assert sum(h.nbytes for h in headers.values()) == (model_dir / "model.safetensors").stat().st_size - header_bytes


def test_a_skeleton_reads_no_weight(model_dir):
    opened = open_model(model_dir)
    assert all(p.is_meta for p in opened.model.parameters())
    assert opened.stored_dtype("model.layers.0.mlp.up_proj") == torch.bfloat16


def test_tensors_a_model_class_ignores_are_kept(model_dir):
    tensors = load_file(model_dir / "model.safetensors")
    tensors["mtp.extra.weight"] = torch.ones(3)
    save_file(tensors, model_dir / "model.safetensors", metadata={"format": "pt"})
    others = dict(open_model(model_dir).other_tensors({"model.layers.0.mlp.up_proj"}))
    assert "mtp.extra.weight" in others
    assert "model.layers.0.mlp.up_proj.weight" not in others


def test_a_model_object_with_weights_elsewhere_is_refused():
    from auto_round.model.opened import wrap_model

    with torch.device("meta"):
        bare = torch.nn.Linear(2, 2)
    with pytest.raises(ModelError, match="meta device"):
        wrap_model(bare)
