# SPDX-License-Identifier: Apache-2.0
"""A model brought in part by part is the model that transformers loads in one piece, bit for bit."""

import random
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from auto_round.errors import ModelError
from auto_round.model.experts import split_experts
from auto_round.model.opened import open_model
from auto_round.model.weights import OUTSIDE

ARCHITECTURES = ["llama", "tied", "gpt2", "gemma3", "qwen3_moe", "mixtral", "gpt_oss", "deepseek"]
IDS = torch.randint(3, 250, (2, 12), generator=torch.Generator().manual_seed(0))


def loaded(directory):
    """What transformers makes of it, with its experts taken apart."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype="auto")
    split_experts(model)
    return model.eval()


def assert_same(ours, theirs, prefix=""):
    """Every parameter and buffer, those included that no file has."""
    for kind in ("named_parameters", "named_buffers"):
        mine, wanted = dict(getattr(ours, kind)()), dict(getattr(theirs, kind)())
        assert mine.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert mine[name].dtype == tensor.dtype, prefix + name
            assert torch.equal(mine[name], tensor), prefix + name


def assert_same_answers(ours, theirs):
    with torch.no_grad():
        # The same operations on the same numbers.
        assert torch.equal(ours(IDS).logits, theirs(IDS).logits)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_parts_are_what_transformers_loads(stored, architecture):
    directory = stored(architecture)
    opened = open_model(directory)
    assert all(p.is_meta for p in opened.model.parameters())
    opened.load()
    theirs = loaded(directory)
    assert_same(opened.model, theirs)
    assert_same_answers(opened.model, theirs)
    assert not any(p.requires_grad for p in opened.model.parameters())
    assert not any(m.training for m in opened.model.modules())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("architecture", ["llama", "gpt_oss", "deepseek"])
def test_in_the_dtype_of_the_files(stored, architecture, dtype):
    """In float16, transformers keeps some parts of some models in float32."""
    directory = stored(architecture, dtype)
    opened = open_model(directory)
    opened.load()
    theirs = loaded(directory)
    assert_same(opened.model, theirs)
    if architecture == "gpt_oss" and dtype == torch.float16:
        assert {p.dtype for p in theirs.parameters()} == {torch.float16, torch.float32}


@pytest.mark.parametrize("architecture", ["tied", "gpt2", "qwen3_moe", "mixtral"])
def test_from_several_files(stored, architecture):
    directory = stored(architecture, shards="20KB")
    assert len(list(directory.glob("*.safetensors"))) > 3
    opened = open_model(directory)
    opened.load()
    assert_same(opened.model, loaded(directory))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_part_at_a_time_in_any_order_and_again(stored, architecture):
    directory = stored(architecture)
    opened, theirs = open_model(directory), loaded(directory)
    blocks = opened.structure.blocks
    order = random.Random(architecture).sample([*blocks, *blocks, OUTSIDE], 2 * len(blocks) + 1)
    for part in order:
        opened.bring(part)
        if part == OUTSIDE:
            continue
        assert_same(opened.model.get_submodule(part), theirs.get_submodule(part), f"{part}.")
        there = {b for b in blocks if not all(p.is_meta for p in opened.model.get_submodule(b).parameters())}
        assert there == {part}
        opened.release(part)
        assert all(p.is_meta for p in opened.model.get_submodule(part).parameters())
    opened.load()
    assert_same(opened.model, theirs)
    assert_same_answers(opened.model, theirs)


def test_who_changes_the_config_of_an_opened_model_means_all_blocks(stored):
    opened = open_model(stored("llama"))
    opened.load()
    opened.model.set_attn_implementation("eager")
    assert {layer.self_attn.config._attn_implementation for layer in opened.model.model.layers} == {"eager"}


def test_released_weights_are_gone(stored):
    opened = open_model(stored("qwen3_moe"))
    opened.load()
    block = opened.structure.blocks[0]
    with torch.no_grad():
        for parameter in opened.model.get_submodule(block).parameters():
            parameter.zero_()
    opened.release(block)
    opened.bring(block)
    assert_same(opened.model, loaded(stored("qwen3_moe")))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_lies_outside_the_blocks_can_go_and_come_back(stored, architecture):
    directory = stored(architecture)
    opened, theirs = open_model(directory), loaded(directory)
    opened.load()
    opened.release(OUTSIDE)
    blocks = tuple(f"{block}." for block in opened.structure.blocks)
    there = {n for n, p in opened.model.named_parameters(remove_duplicate=False) if not p.is_meta}
    assert there == {n for n, _ in opened.model.named_parameters(remove_duplicate=False) if n.startswith(blocks)}
    opened.bring(OUTSIDE)
    assert_same(opened.model, theirs)
    assert_same_answers(opened.model, theirs)


def test_what_is_worked_on_is_not_read_anew(stored):
    opened = open_model(stored("llama"))
    opened.bring("model.layers.1")
    weight = opened.model.model.layers[1].mlp.up_proj.weight
    with torch.no_grad():
        weight.zero_()
    opened.bring("model.layers.1")
    assert opened.model.model.layers[1].mlp.up_proj.weight is weight


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_linear_layers_by_themselves(stored, architecture, dtype):
    """Those that lie in files as they are come from there; others with their block. They are the same either way."""
    directory = stored(architecture, dtype)
    opened, theirs = open_model(directory), loaded(directory)
    by_itself = 0
    for info in opened.structure.linears:
        linear = opened.linears([info.name], keep=False)[info.name]
        wanted = theirs.get_submodule(info.name).weight
        assert linear.weight.dtype == wanted.dtype, info.name
        assert torch.equal(linear.weight, wanted), info.name
        by_itself += opened.loader is None
    if architecture in ("llama", "gpt2", "gemma3", "qwen3_moe"):
        untied = [info for info in opened.structure.linears if not info.tied]
        assert by_itself == len(untied)


# Files that are not whole


@pytest.fixture
def changed(stored, tmp_path):
    """A copy of a model whose tensors a function has changed."""

    def of(architecture, change):
        directory = tmp_path / "model"
        shutil.copytree(stored(architecture), directory)
        tensors = load_file(directory / "model.safetensors")
        change(tensors)
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return directory

    return of


@pytest.mark.parametrize(
    ("architecture", "name", "told"),
    [
        ("llama", "model.embed_tokens.weight", "model.embed_tokens.weight"),
        ("llama", "model.norm.weight", "model.norm.weight"),
        ("llama", "lm_head.weight", "lm_head.weight"),
        ("tied", "model.embed_tokens.weight", "model.embed_tokens.weight"),
        ("llama", "model.layers.2.input_layernorm.weight", "model.layers.2.input_layernorm.weight"),
        ("llama", "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"),
        ("gpt2", "transformer.h.1.mlp.c_fc.bias", "transformer.h.1.mlp.c_fc.bias"),
        ("gpt_oss", "model.layers.0.mlp.experts.down_proj_bias", "model.layers.0.mlp.experts.down_proj_bias"),
    ],
)
def test_a_tensor_that_is_missing_is_told_when_the_model_is_opened(changed, architecture, name, told):
    directory = changed(architecture, lambda tensors: tensors.pop(name))
    with pytest.raises(ModelError, match=f"the files lack 1 weights of .*, {told} first") as caught:
        open_model(directory)
    assert str(directory) in str(caught.value)


def test_a_shape_that_does_not_fit_is_told_when_the_model_is_opened(changed):
    name = "model.layers.2.mlp.up_proj.weight"
    directory = changed("llama", lambda tensors: tensors.update({name: tensors[name][:-1].clone()}))
    with pytest.raises(ModelError, match=rf"{name} is stored as \[47, 32\], and .* config describes \[48, 32\]"):
        open_model(directory)


def one_expert_less(tensors):
    """Those of a block are stored one by one and become one tensor, which is then too small."""
    for name in [n for n in tensors if n.startswith("model.layers.1.mlp.experts.3.")]:
        del tensors[name]


def one_layer_less(tensors):
    tensors.pop("model.layers.1.mlp.experts.2.up_proj.weight")


def one_layer_smaller(tensors):
    name = "model.layers.1.mlp.experts.2.down_proj.weight"
    tensors[name] = tensors[name][:-1].clone()


@pytest.mark.parametrize("change", [one_expert_less, one_layer_less, one_layer_smaller])
def test_experts_that_are_not_whole(changed, change):
    directory = changed("qwen3_moe", change)

    def bring():
        opened = open_model(directory)
        opened.bring("model.layers.0")
        opened.bring("model.layers.1")

    with pytest.raises(ModelError, match=r"model\.layers\.1") as caught:
        bring()
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("architecture", ["llama", "qwen3_moe"])
def test_what_is_no_number_is_named(changed, architecture, value):
    name = {"llama": "model.layers.1.mlp.up_proj", "qwen3_moe": "model.layers.1.mlp.experts.2.up_proj"}[architecture]
    directory = changed(architecture, lambda tensors: tensors[f"{name}.weight"][3].fill_(value))
    for ask in (lambda o: o.bring("model.layers.1"), lambda o: o.linears([name], keep=False)):
        opened = open_model(directory)
        with pytest.raises(ModelError, match=rf"{name}.weight has 32 values that are NaN or infinite") as caught:
            ask(opened)
        assert str(directory) in str(caught.value)


def refuses_in_one_line(opened):
    """Whoever asks for a block, or for a layer by itself."""
    for ask in (
        lambda: opened.bring("model.layers.1"),
        lambda: opened.linears(["model.layers.1.mlp.up_proj"], keep=False),
    ):
        with pytest.raises(ModelError) as caught:
            ask()
        assert len(str(caught.value).splitlines()) == 1


def test_a_file_that_was_cut_off_after_it_was_opened(changed):
    directory = changed("llama", lambda _: None)
    opened = open_model(directory)
    opened.bring(OUTSIDE)
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4000])
    refuses_in_one_line(opened)


def test_a_file_that_is_gone_after_it_was_opened(changed):
    directory = changed("llama", lambda _: None)
    opened = open_model(directory)
    (directory / "model.safetensors").unlink()
    refuses_in_one_line(opened)
