# SPDX-License-Identifier: Apache-2.0
"""Models that are quantized already: a format that knows how reads them, and what is written shows nothing of it."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from auto_round import AutoRound, hookimpl
from auto_round.errors import ModelError
from auto_round.export import OutputFormat
from auto_round.lazy import LazyFormat
from auto_round.model.reader import WeightReader


class Halves(WeightReader):
    """Weights stored as int8 halves."""

    def plain(self, stored, dtype):
        return {n: dataclasses.replace(h, dtype=dtype if h.dtype == torch.int8 else h.dtype) for n, h in stored.items()}

    def read(self, name, files, dtype):
        tensor = files.tensor(name)
        return tensor.to(dtype) / 2 if tensor.dtype == torch.int8 else tensor


class HalvesFormat(OutputFormat):
    name = "halves"

    def reader(self, quantization_config):
        return Halves() if quantization_config.get("of") == "one" else None

    def start(self, plan, model, directory):
        raise NotImplementedError


class Plugin:
    @hookimpl
    def exporters(self):
        return [Known("halves", "", reads="halves")]


class Known(LazyFormat):
    """A record whose object is at hand; test modules cannot be imported by name."""

    def load(self):
        return HalvesFormat()


@pytest.fixture
def halved(model_dir):
    file, config_file = model_dir / "model.safetensors", model_dir / "config.json"
    tensors = load_file(file)
    whole = {n: (t.float() * 40).round().clamp(-127, 127).to(torch.int8) for n, t in tensors.items() if "_proj" in n}
    save_file({**tensors, **whole}, file, {"format": "pt"})
    config = json.loads(config_file.read_text())
    config["quantization_config"] = {"quant_method": "halves", "of": "one"}
    config_file.write_text(json.dumps(config))
    return model_dir, whole


def test_a_model_in_a_format_that_is_known_is_quantized_anew(halved, registry, tmp_path):
    directory, whole = halved
    registry.register(Plugin(), name="halves")
    job = AutoRound(
        directory, scheme="STEPS4", iters=0, disable_opt_rtn=True, registry=registry, verbose=False,
        layer_config={"layers.0": {"bits": 16}},
    )  # fmt: skip
    plan = job.plan()
    assert {layer.dtype for layer in plan.layers if layer.block} == {torch.bfloat16}
    job.quantize_and_save(tmp_path / "out", format="fake")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name, halves in whole.items():
        if ".layers.0." in name:
            assert torch.equal(written[name], halves.bfloat16() / 2)
        assert written[name].dtype == torch.bfloat16


def test_one_that_nobody_reads_is_refused(halved, registry):
    with pytest.raises(ModelError, match=r"quantized already \(method halves\), which no installed plugin reads"):
        AutoRound(halved[0], scheme="STEPS4", registry=registry).plan()
