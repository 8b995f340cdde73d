# SPDX-License-Identifier: Apache-2.0
"""transformers finds us by itself, and refuses in plain words what it cannot load."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoRoundConfig

from auto_round import AutoRound
from auto_round.errors import AutoRoundError, ModelError
from auto_round.inference.convert_model import infer_target_device
from auto_round.inference.packed_linear import PackedLinear
from auto_round.plugins import Registry
from auto_round.testing.distributions import FakeDistribution


@pytest.fixture
def checkpoint(model_dir, installed, tokens, tmp_path):
    job = AutoRound(
        model_dir, scheme="STEPS4", dataset=tokens, iters=2, nsamples=8, batch_size=4, verbose=False,
        layer_config={"layers.0.mlp.up_proj": {"bits": 16}, "layers.1.mlp": {"bits": 8, "group_size": 16}},
    )  # fmt: skip
    model, _ = job.quantize_and_save(tmp_path / "out")
    return tmp_path / "out", model


@pytest.mark.parametrize("device_map", [None, "cpu", "auto"])
@torch.no_grad()
def test_from_pretrained_computes_what_was_tuned(checkpoint, tokens, device_map):
    directory, tuned = checkpoint
    loaded = AutoModelForCausalLM.from_pretrained(directory, dtype="auto", device_map=device_map)
    packed = {n: m for n, m in loaded.named_modules() if isinstance(m, PackedLinear)}
    assert len(packed) == 13
    assert packed["model.layers.1.mlp.up_proj"].scheme.bits == 8
    for name, module in packed.items():
        assert torch.equal(module.decode(torch.bfloat16), tuned.get_submodule(name).weight)
    assert torch.equal(loaded(tokens).logits, tuned(tokens).logits)
    assert loaded.generate(tokens[:1], max_new_tokens=3, do_sample=False).shape == (1, 19)


def backend(name):
    return {"quantization_config": AutoRoundConfig(backend=name)}


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")  # transformers says it for every option
@torch.no_grad()
def test_low_memory_keeps_no_decoded_weight(checkpoint, tokens):
    directory, tuned = checkpoint
    loaded = AutoModelForCausalLM.from_pretrained(directory, dtype="auto", **backend("low_memory"))
    packed = [m for m in loaded.modules() if isinstance(m, PackedLinear)]
    assert torch.equal(loaded(tokens).logits, tuned(tokens).logits)
    assert all(module._decoded is None for module in packed)


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
@torch.no_grad()
def test_a_kernel_serves_few_rows_only(checkpoint, tokens, monkeypatch):
    directory, tuned = checkpoint
    asked = []

    class Kernel:
        most_rows = 2

        def __init__(self, weight):
            self.weight = weight

        def __call__(self, x):
            asked.append(x.shape)
            return x @ self.weight.T

    loaded = AutoModelForCausalLM.from_pretrained(directory, dtype="auto", **backend("kernel"))
    data_type = next(m for m in loaded.modules() if isinstance(m, PackedLinear)).data_type
    monkeypatch.setattr(type(data_type), "kernel", lambda self, codes: Kernel(self.decode(codes)))
    assert torch.equal(loaded(tokens[:1]).logits, tuned(tokens[:1]).logits)
    assert not asked
    torch.testing.assert_close(loaded(tokens[:1, :2]).logits, tuned(tokens[:1, :2]).logits)
    assert asked
    assert {len(shape) for shape in asked} == {2}


def test_an_unknown_backend_is_refused(checkpoint):
    with (
        pytest.warns(UserWarning, match="quantization_config"),
        pytest.raises(AutoRoundError, match=r"no backend 'marlin' .* auto \("),
    ):
        AutoModelForCausalLM.from_pretrained(checkpoint[0], **backend("marlin"))


def test_saving_what_was_loaded_gives_the_same_tensors(checkpoint, tmp_path):
    directory, _ = checkpoint
    loaded = AutoModelForCausalLM.from_pretrained(directory, dtype="auto")
    loaded.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype="auto")
    for (name, a), (_, b) in zip(loaded.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_a_checkpoint_whose_family_is_missing_says_what_to_install(checkpoint, installed):
    directory, _ = checkpoint
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"]["data_type"] = "acme_odd"
    config["quantization_config"]["provenance"] = {"acme_odd": {"distribution": "autoround-acme", "version": "3.1"}}
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(AutoRoundError, match=r"autoround-acme==3\.1"):
        AutoModelForCausalLM.from_pretrained(directory)


@pytest.mark.parametrize(
    ("device_map", "expected"),
    [
        (None, "cpu"),
        ("cpu", "cpu"),
        (1, "cuda:1"),
        ({"": "cpu"}, "cpu"),
        ({"a": 0, "b": "cpu"}, "cuda:0"),
        ("cuda:2", "cuda:2"),
    ],
)
def test_target_device(device_map, expected):
    assert infer_target_device(device_map) == expected


TABLE = """
import torch
from auto_round.data_type.register import register_dtype
LEVELS = torch.tensor([-1.0, -0.25, 0.0, 0.5])  # the natural way to write a grid down
@register_dtype("table")
def quant_tensor_table(tensor, bits=2, group_size=32): return LEVELS[(tensor > 0).long()], None, None
"""


LAZY = """
from auto_round.hookspecs import LazyDataType, hookimpl
@hookimpl
def quant_tensor(): return [LazyDataType("table", "table_values:quant_tensor_table", "looked up")]
"""


@pytest.mark.parametrize("modules", [{"autoround_table": TABLE}, {"autoround_table": LAZY, "table_values": TABLE}])
def test_plugins_that_are_imported_while_a_model_is_built_make_ordinary_tensors(tmp_path, modules):
    fake = FakeDistribution("autoround-table", "1", {"table": "autoround_table"}, modules)
    with fake.installed(tmp_path):
        registry = Registry(allow=["table"])
        with torch.device("meta"):
            data_type = registry.data_type("table")
            quantized, _, _ = data_type.quant_tensor(torch.ones(2, device="cpu"))
        assert quantized.tolist() == [-0.25, -0.25]


def test_a_tensor_that_no_file_has_is_missed(checkpoint):
    """transformers warns, and what is left is whatever memory held."""
    directory, _ = checkpoint
    file = directory / "model.safetensors"
    tensors = load_file(file)
    gone = next(name for name in tensors if name.startswith("model.layers.1.mlp") and not name.endswith(".weight"))
    del tensors[gone]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"no tensor {gone}: its files are incomplete"):
        AutoModelForCausalLM.from_pretrained(directory)
