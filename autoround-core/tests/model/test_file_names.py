# SPDX-License-Identifier: Apache-2.0
"""Files are written under the names that the model's own files have, as transformers writes them."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, Qwen3_5MoeConfig

from auto_round import AutoRound
from auto_round.data_type import DataType, Runtime
from auto_round.errors import PlanError
from auto_round.export import OutputFormat
from auto_round.hookspecs import hookimpl
from auto_round.inference.packed_linear import PackedLinear
from auto_round.model.experts import SplitExperts
from auto_round.names import prefix_change

pytestmark = pytest.mark.slow

ARCHITECTURES = ["qwen3_moe", "mixtral", "phimoe", "granitemoe", "gpt_oss"]
FUSED = ["granitemoe", "gpt_oss"]
ROUND = {"scheme": "STEPS4", "iters": 0, "disable_opt_rtn": True, "verbose": False}


@pytest.fixture
def original(request, stored):
    return stored(request.param)


def tensors_of(directory):
    return load_file(directory / "model.safetensors")


def parameter_of(model, name):
    """A parameter of a model whose experts may be taken apart."""
    module, _, leaf = name.rpartition(".")
    module = model.get_submodule(module)
    return module.joined(leaf) if isinstance(module, SplitExperts) else getattr(module, leaf)


@pytest.mark.parametrize("original", ARCHITECTURES, indirect=True)
@pytest.mark.parametrize("source", ["files", "a block at a time", "object"])
@pytest.mark.parametrize("but", ["all", "an expert", "a block"])
@torch.no_grad()
def test_weights_at_full_precision_are_written_as_transformers_writes_them(original, source, but, installed, tmp_path):
    """Names and shapes; loaded again, they are the weights of the model that was rounded in memory."""
    experts = next(layer.name for layer in AutoRound(original, **ROUND).plan().layers if layer.expert).rsplit(".", 2)[0]
    left = {"all": None, "an expert": f"{experts}.1", "a block": "layers.1"}[but]
    options = ROUND | ({} if left is None else {"layer_config": {left: {"bits": 16}}})
    rounded, _ = AutoRound(original, **options).quantize(format="fake")
    model = AutoModelForCausalLM.from_pretrained(original, dtype="auto") if source == "object" else original
    job = AutoRound(model, low_cpu_mem_usage=source == "a block at a time", **options)
    job.quantize_and_save(tmp_path / "out", format="fake")
    before, after = tensors_of(original), tensors_of(tmp_path / "out")
    assert {name: tensor.shape for name, tensor in before.items()} == {n: t.shape for n, t in after.items()}
    loaded, told = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto", output_loading_info=True)
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, parameter_of(rounded, name)), name


@pytest.mark.parametrize("original", ARCHITECTURES, indirect=True)
def test_a_plan_knows_what_files_have(original, installed):
    plan = AutoRound(original, **ROUND).plan("fake")
    stored = tensors_of(original)
    for layer in plan.layers:
        assert layer.fused != (f"{layer.stored_name}.weight" in stored)
        assert layer.fused <= layer.expert
    others = stored.keys() - {f"{layer.stored_name}.weight" for layer in plan.quantized}
    named = (name for name in others if name.endswith(".weight") and "embed" not in name)
    linear = {name.removesuffix(".weight") for name in named if stored[name].dim() == 2}
    assert len(linear) == 3  # the routers of two blocks, and the output layer
    assert linear <= set(plan.left_alone)


@pytest.mark.parametrize("original", ["mixtral"], indirect=True)
def test_experts_that_all_are_left_alone_are_named_together(original, installed):
    """vLLM asks by the name of all of them whether they are quantized."""
    left = AutoRound(original, **ROUND, layer_config={"layers.1.mlp.experts": {"bits": 16}}).plan("fake").left_alone
    assert {"model.layers.1.mlp.experts", "model.layers.1.block_sparse_moe.experts"} <= set(left)
    left = AutoRound(original, **ROUND, layer_config={"layers.1.mlp.experts.0": {"bits": 16}}).plan("fake").left_alone
    assert "model.layers.1.mlp.experts.0.up_proj" in left
    assert "model.layers.1.mlp.experts" not in left


class Apart(OutputFormat):
    """As files of others are that have experts one by one."""

    name = "apart"

    def start(self, plan, model, directory):
        raise NotImplementedError


class Known(DataType):
    name = "known"
    runtimes = (Runtime("a library", "1.0", "apart"), Runtime("a server", "1.0", "apart", fuses=True))

    def quant_tensor(self, tensor):
        return tensor, None, None


class Plugin:
    @hookimpl
    def quant_tensor(self):
        return [Known()]

    @hookimpl
    def exporters(self):
        return [Apart()]


@pytest.mark.parametrize("source", ["files", "object"])
def test_experts_that_files_have_in_one_tensor_are_written_one_by_one(stored, source, registry):
    """For runtimes with models of their own, which is said; but not gate and up interleaved, as nobody reads them."""
    registry.register(Plugin(), name="apart")

    def plan(architecture, data_type="known", output_format="apart"):
        original = stored(architecture)
        model = AutoModelForCausalLM.from_pretrained(original) if source == "object" else original
        options = {"data_type": data_type, "group_size": 16, "registry": registry, "verbose": False}
        return AutoRound(model, **options).plan(output_format)

    first = "model.layers.0.block_sparse_moe.experts.0.gate_proj"
    one_tensor = f"{first} and 23 more in format apart: it knows the experts of this model in one tensor."
    assert plan("granitemoe").notes == (f"a library will not load {one_tensor}",)
    with pytest.raises(PlanError, match="gate_up_proj.*: format apart cannot hold it: its readers know these experts"):
        plan("gpt_oss")
    assert not plan("granitemoe", "steps", "auto_round").notes
    (note,) = plan("gpt_oss", "steps", "auto_round").notes
    assert "gate_up_proj holds gate and up of each expert interleaved, which transformers alone reads" in note


@pytest.mark.parametrize("original", ["mixtral"], indirect=True)
def test_an_expert_at_full_precision_beside_quantized_ones_is_refused(original, installed):
    """transformers would put its tensors together with the others', and leave the model without any."""
    job = AutoRound(original, **ROUND, layer_config={"layers.1.mlp.experts.0": {"bits": 16}})
    names = "model.layers.1.mlp.experts.0.gate_proj and 2 more"
    with pytest.raises(PlanError, match=f"format auto_round cannot hold {names}: transformers does not find experts"):
        job.plan("auto_round")
    assert job.plan("fake").quantized


def test_experts_in_several_schemes_are_told(stored, registry):
    registry.register(Plugin(), name="apart")
    options = {"data_type": "known", "group_size": 16, "registry": registry, "verbose": False}
    for left in ({"experts.0": {"bits": 16}}, {"experts.0": {"bits": 8}}, {"experts.*.down_proj": {"bits": 8}}):
        notes = AutoRound(stored("qwen3_moe"), **options, layer_config=left).plan("apart").notes
        (told,) = (note for note in notes if "all experts of a block together, in one scheme" in note)
        assert told.startswith("a server will not load model.layers.0.mlp.experts.")
    for left in ({"layers.0.mlp.experts": {"bits": 8}}, {"mlp.experts": {"bits": 16}}):
        assert not AutoRound(stored("qwen3_moe"), **options, layer_config=left).plan("apart").notes


NAMED = {
    "mixtral": ("layers.1.mlp.experts", "layers.0.mlp.experts.0.up_proj", ["model.layers"]),
    "nemotron_h": ("layers.1.mixer.down_proj", "layers.0.mixer.q_proj", ["model.layers", "backbone.layers"]),
}
"""A key of layers to be left alone, the name of one with 8 bits, and what lists of blocks are called."""


@pytest.mark.parametrize("architecture", NAMED)
def test_format_auto_round_has_the_names_of_the_files_and_loads(architecture, stored, installed, tmp_path):
    """vLLM looks for these; in its config layers have both names, as our loader goes by those of modules."""
    original, (left, key, lists) = stored(architecture), NAMED[architecture]
    job = AutoRound(original, **ROUND, layer_config={left: {"bits": 16}, key: {"bits": 8}})
    model, _ = job.quantize_and_save(tmp_path / "out")
    before, after = tensors_of(original), tensors_of(tmp_path / "out")
    quantized = {layer.stored_name for layer in job.plan().quantized}
    assert {f"{name}.weight" for name in quantized} <= before.keys()
    assert {name.rpartition(".")[0] for name in after.keys() - before.keys()} == quantized
    assert before.keys() - after.keys() == {f"{name}.weight" for name in quantized}
    config = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    eight = {name for name, fields in config["extra_config"].items() if fields.get("bits") == 8}
    (special,) = (layer for layer in job.plan().quantized if layer.scheme.bits == 8)
    assert eight == {special.name, special.stored_name}
    assert config["block_name_to_quantize"].split(",") == lists
    loaded, told = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto", output_loading_info=True)
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert sum(isinstance(module, PackedLinear) for module in loaded.modules()) == len(quantized)
    if architecture == "mixtral":
        loaded.set_experts_implementation("eager")
    ids = torch.arange(3, 19)[None]
    # Experts left alone run fused there and one by one here: bfloat16 sums in two orders.
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=0.02, atol=0.02 * model(ids).logits.std())


SIGHTED = Qwen3_5MoeConfig(
    text_config={
        "vocab_size": 256, "hidden_size": 32, "num_hidden_layers": 2, "layer_types": ["full_attention"] * 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "pad_token_id": 0, "dtype": "bfloat16",
    },
    vision_config={"hidden_size": 32, "depth": 1, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 32},
    dtype="bfloat16",
)  # fmt: skip


@pytest.mark.parametrize("experts", ["apart", "in one tensor"])
@pytest.mark.parametrize("output_format", ["auto_round", "fake"])
def test_a_model_with_a_vision_tower_keeps_it_and_all_names(experts, output_format, installed, tmp_path):
    """Only its language model is known here; files are read again by the class that they were made by, too."""
    torch.manual_seed(0)
    whole = AutoModelForImageTextToText.from_config(SIGHTED, dtype=torch.bfloat16)
    whole.save_pretrained(tmp_path / "model")
    if experts == "in one tensor":  # as these models are published
        tensors = {k: v for k, v in tensors_of(tmp_path / "model").items() if ".experts." not in k}
        tensors |= {k: v.contiguous() for k, v in whole.state_dict().items() if ".experts." in k}
        save_file(tensors, tmp_path / "model/model.safetensors", metadata={"format": "pt"})
    job = AutoRound(tmp_path / "model", **ROUND)
    model, _ = job.quantize_and_save(tmp_path / "out", format=output_format)
    plan = job.plan(output_format)
    assert "matrices that Qwen3_5MoeForCausalLM does not use, model.visual." in plan.notes[0]
    assert {"model.visual.merger.linear_fc1", "model.visual.blocks.0.attn.qkv"} <= set(plan.left_alone)
    assert plan.block_lists == ("model.layers", "model.language_model.layers")
    before, after = tensors_of(tmp_path / "model"), tensors_of(tmp_path / "out")
    if output_format == "fake":
        assert before.keys() == after.keys()
    else:
        names = {layer.stored_name for layer in plan.quantized}
        assert {name.rpartition(".")[0] for name in after.keys() - before.keys()} == names
        gone = {name.removesuffix(".weight") for name in before.keys() - after.keys()} - names
        stacks = {name for name in before if name.endswith(("experts.gate_up_proj", "experts.down_proj"))}
        assert gone == stacks
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items() if "visual" in name)
    ids = torch.arange(3, 19)[None]
    for made_by in (AutoModelForCausalLM, AutoModelForImageTextToText):
        loaded, told = made_by.from_pretrained(tmp_path / "out", dtype="auto", output_loading_info=True)
        assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        loaded.set_experts_implementation("eager")
        # Experts in one tensor and one by one: bfloat16 sums in two orders.
        wanted = model(ids).logits
        torch.testing.assert_close(loaded(input_ids=ids).logits, wanted, rtol=0.02, atol=0.02 * wanted.std())


def test_what_stands_before_blocks():
    """Told by names that end alike from a number on; other names within blocks, or outside, tell nothing."""
    names = {"lm_head": "head", "a.layers.0.mlp.up": "a.layers.0.ffn.w1", "a.layers.0.o": None}
    assert prefix_change(names) == ("", "")
    assert prefix_change(names | {"a.layers.1.o": "b.c.layers.1.o"}) == ("a.", "b.c.")
    assert prefix_change({"layers.0.o": "x.layers.0.o"}) == ("", "x.")
