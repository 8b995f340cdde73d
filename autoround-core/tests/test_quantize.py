# SPDX-License-Identifier: Apache-2.0
"""The whole road with a data type that core has never heard of: model directory to a checkpoint that loads."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from auto_round import AutoRound, QuantizationScheme
from auto_round.errors import ModelError, OutputError, PlanError, SchemeError, UnknownNameError, UnknownOptionError
from auto_round.inference.convert_model import convert_hf_model
from auto_round.inference.packed_linear import PackedLinear
from auto_round.plugins import Registry
from auto_round.tuning import signround

from .conftest import make_model, make_tokenizer

RUN = {"nsamples": 8, "batch_size": 4, "verbose": False}


def weights(model):
    return {n: p.detach().clone() for n, p in model.state_dict().items()}


def test_quantize_changes_the_linear_layers_of_the_blocks_and_nothing_else(model_dir, registry, tokens):
    original = weights(AutoModelForCausalLM.from_pretrained(model_dir, dtype="auto"))
    job = AutoRound(model_dir, scheme="STEPS4", dataset=tokens, iters=3, registry=registry, **RUN)
    model, layer_config = job.quantize()
    changed = {n for n, w in weights(model).items() if not torch.equal(w, original[n])}
    expected = {f"{layer.name}.weight" for layer in job.plan().quantized}
    assert changed == expected
    assert len(expected) == 14
    assert layer_config["model.layers.0.mlp.up_proj"]["bits"] == 4
    assert not any(p.requires_grad for p in model.parameters())


def test_tuning_lowers_the_loss_of_every_block(model_dir, registry, tokens):
    job = AutoRound(model_dir, scheme="STEPS4", bits=3, dataset=tokens, iters=40, registry=registry, **RUN)
    job.quantize()
    for block in job.report.blocks:
        assert block.loss_after < block.loss_before


@pytest.mark.parametrize("iters", [0, 4])
def test_what_is_loaded_is_what_was_tuned(model_dir, registry, tokens, tmp_path, iters):
    out = tmp_path / "out"
    job = AutoRound(model_dir, scheme="STEPS4", dataset=tokens, iters=iters, registry=registry, **RUN)
    tuned, folders = job.quantize_and_save(out, format="auto_round")
    assert folders == [str(out)]
    loaded = load(out, registry)
    for name, module in loaded.named_modules():
        if isinstance(module, PackedLinear):
            assert torch.equal(module.decode(torch.bfloat16), tuned.get_submodule(name).weight), name
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, tuned(tokens).logits)


def test_files_are_quantized_anew_by_every_call(model_dir, registry, tokens, tmp_path):
    job = AutoRound(model_dir, scheme="STEPS4", dataset=tokens, iters=2, registry=registry, **RUN)
    first, _ = job.quantize()
    second, _ = job.quantize_and_save(tmp_path / "out")
    assert second is not first
    assert all(torch.equal(w, weights(first)[n]) for n, w in weights(second).items())


def test_a_model_object_is_quantized_once(model_dir, registry, tokens, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype="auto")
    job = AutoRound(model, scheme="STEPS4", dataset=tokens, iters=0, registry=registry, **RUN)
    job.quantize()
    with pytest.raises(ModelError, match="was quantized in place before.*save_quantized"):
        job.quantize_and_save(tmp_path / "out")
    assert job.save_quantized(tmp_path / "out") == [str(tmp_path / "out")]


def test_a_run_that_fails_leaves_the_layers_in_their_places(model_dir, registry, tokens, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype="auto")
    modules = dict(model.named_modules())

    def stop(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("auto_round.tuning.signround.sign_step", stop)
    job = AutoRound(model, scheme="STEPS4", dataset=tokens, iters=2, registry=registry, **RUN)
    with pytest.raises(KeyboardInterrupt):
        job.quantize()
    assert all(module is modules[name] for name, module in model.named_modules())
    with pytest.raises(ModelError, match="quantized in place before"):
        job.quantize()


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"low_cpu_mem_usage": True}, {"recipe": "best"}])
def test_the_same_object_goes_on_from_where_it_was_cut_off(model_dir, registry, tokens, tmp_path, monkeypatch, options):
    made = {"scheme": "STEPS4", "dataset": tokens, "iters": 2, "registry": registry, **RUN, **options}
    AutoRound(model_dir, **made).quantize_and_save(tmp_path / "whole")
    job, steps = AutoRound(model_dir, **made), []

    def stop_in_the_second_block(slots, factor):
        steps.append(factor)
        if factor == 1.0 and 0.5 in steps:
            raise KeyboardInterrupt
        return step(slots, factor)

    step = signround.sign_step
    monkeypatch.setattr(signround, "sign_step", stop_in_the_second_block)
    with pytest.raises(KeyboardInterrupt):
        job.quantize_and_save(tmp_path / "out")
    monkeypatch.setattr(signround, "sign_step", step)
    assert (tmp_path / "out.unfinished").is_dir()
    job.quantize_and_save(tmp_path / "out")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "out")]
    assert files[0] == files[1]


@pytest.mark.parametrize("formats", [[], None, ""])
def test_to_write_nothing_is_refused_before_the_work(model_dir, registry, tokens, tmp_path, formats):
    job = AutoRound(model_dir, scheme="STEPS4", dataset=tokens, iters=0, registry=registry, **RUN)
    with pytest.raises((SchemeError, UnknownNameError), match="names no format|''"):
        job.quantize_and_save(tmp_path / "out", format=formats)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"nsamples": 8.0}, "nsamples must be a whole number"),
        ({"seqlen": 0}, "seqlen must be a whole number"),
        ({"seed": "x"}, "seed must be a whole number"),
        ({"lr": float("inf")}, "lr must be a positive number"),
        ({"compute_dtype": "bf16"}, "compute_dtype must be a torch.dtype"),
        ({"layer_config": ["lm_head"]}, "layer_config is a mapping"),
        ({"enable_alg_ext": True, "recipe": "published"}, "enable_alg_ext is recipe best, but recipe is 'published'"),
    ],
)
def test_values_that_mean_nothing_are_refused_at_once(model_dir, registry, options, told):
    with pytest.raises(UnknownOptionError, match=told):
        AutoRound(model_dir, scheme="STEPS4", registry=registry, **{**RUN, **options})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, as it begins to compile
def test_a_wrapper_around_a_model_is_refused_and_a_compiled_one_is_not(model_dir, registry):
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype="auto")
    with pytest.raises(ModelError, match="a Sequential wraps a LlamaForCausalLM"):
        AutoRound(torch.nn.Sequential(model), scheme="STEPS4", registry=registry, **RUN)
    assert AutoRound(torch.compile(model), scheme="STEPS4", registry=registry, **RUN).model is model


def test_programs_may_quantize_in_threads(model_dir, registry, tokens, tmp_path):
    """While one builds modules, which changes torch for all threads, another must not."""

    def run(number):
        job = AutoRound(model_dir, scheme="STEPS4", dataset=tokens, iters=0, registry=registry, **RUN)
        job.quantize_and_save(tmp_path / f"{number}")
        return load_file(tmp_path / f"{number}/model.safetensors")

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(run, range(4))
    assert all(torch.equal(tensor, other[name]) for other in others for name, tensor in first.items())
    assert not torch.nn.Linear(2, 2).weight.is_meta
    assert torch.get_default_dtype() == torch.float32


def test_quantized_models_can_be_pickled(model_dir, registry, tokens):
    job = AutoRound(model_dir, scheme="STEPS4", act_bits=8, dataset=tokens, iters=0, registry=registry, **RUN)
    model, _ = job.quantize()
    again = pickle.loads(pickle.dumps(model))
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, model(tokens).logits)


def load(directory, registry):
    """What transformers does, with a private registry: build, convert, fill."""
    config = json.loads((directory / "config.json").read_text())
    model = make_model()
    model.config.quantization_config = config["quantization_config"]
    model, used = convert_hf_model(model, "cpu", registry)
    assert used == ["auto_round:codes"]
    missing, unexpected = model.load_state_dict(load_file(directory / "model.safetensors"), strict=False)
    assert not missing
    assert not unexpected
    return model


def test_loaded_models_can_be_pickled(model_dir, installed, tokens, tmp_path):
    AutoRound(model_dir, scheme="STEPS4", dataset=tokens, iters=0, **RUN).quantize_and_save(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    again = pickle.loads(pickle.dumps(model))
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, model(tokens).logits)
    with pytest.raises(TypeError, match="registry of one's own"):
        pickle.dumps(Registry(entry_points=False))


def test_the_same_seed_gives_the_same_bytes(model_dir, registry, tokens, tmp_path):
    files = []
    for name in ("a", "b"):
        job = AutoRound(model_dir, scheme="STEPS4", dataset=tokens, iters=4, registry=registry, **RUN)
        job.quantize_and_save(tmp_path / name)
        files.append((tmp_path / name / "model.safetensors").read_bytes())
    assert files[0] == files[1]


def test_two_formats_of_one_run(model_dir, registry, tokens, tmp_path):
    job = AutoRound(model_dir, scheme="STEPS4", dataset=tokens, iters=0, registry=registry, **RUN)
    model, folders = job.quantize_and_save(tmp_path / "out", format="auto_round,fake")
    assert folders == [str(tmp_path / "out" / "auto_round"), str(tmp_path / "out" / "fake")]
    fake = AutoModelForCausalLM.from_pretrained(folders[1], dtype="auto")
    for name, weight in weights(fake).items():
        assert torch.equal(weight, model.state_dict()[name])


def test_save_after_quantize_writes_the_same_as_both_in_one(model_dir, registry, tokens, tmp_path):
    options = {"scheme": "STEPS4", "dataset": tokens, "iters": 2, "registry": registry, **RUN}
    AutoRound(model_dir, **options).quantize_and_save(tmp_path / "one")
    job = AutoRound(model_dir, **options)
    job.quantize()
    job.save_quantized(tmp_path / "two")
    assert load_file(tmp_path / "one/model.safetensors").keys() == load_file(tmp_path / "two/model.safetensors").keys()
    for name, tensor in load_file(tmp_path / "one/model.safetensors").items():
        assert torch.equal(tensor, load_file(tmp_path / "two/model.safetensors")[name])


def test_a_model_object_and_a_tokenizer_instead_of_a_path(registry, tmp_path):
    texts = [" ".join(f"w{(i * 7 + j) % 250}" for j in range(20)) for i in range(8)]
    job = AutoRound(
        make_model(), make_tokenizer(), scheme="STEPS4", dataset=texts, seqlen=16, iters=2, registry=registry, **RUN
    )
    job.quantize_and_save(tmp_path / "out", format="fake")
    assert (tmp_path / "out/tokenizer.json").is_file()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").config.hidden_size == 32


def test_layer_config_decides_layer_by_layer(model_dir, registry, tokens):
    job = AutoRound(
        model_dir,
        scheme="STEPS4",
        layer_config={
            "layers.1": {"bits": 8},
            "*.down_proj": {"bits": 16},
            "model.layers.1.mlp.down_proj": {"bits": 2},
        },
        dataset=tokens,
        registry=registry,
    )
    bits = {layer.name: layer.scheme.bits for layer in job.plan().layers if layer.quantized}
    assert bits["model.layers.0.mlp.up_proj"] == 4
    assert bits["model.layers.1.mlp.up_proj"] == 8
    assert bits["model.layers.1.mlp.down_proj"] == 2
    assert "model.layers.0.mlp.down_proj" not in bits


def test_an_output_directory_that_is_not_empty_is_left_alone(model_dir, registry, tokens, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        AutoRound(model_dir, scheme="STEPS4", dataset=tokens, registry=registry, **RUN).quantize_and_save(
            tmp_path / "out"
        )
    assert (tmp_path / "out/precious.txt").read_text() == "mine"


def test_a_run_that_fails_leaves_nothing(model_dir, registry, tokens, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("auto_round.export.shards.ShardWriter.add", full)
    job = AutoRound(model_dir, scheme="STEPS4", dataset=tokens, iters=0, resume=False, registry=registry, **RUN)
    with pytest.raises(OutputError, match="full; nothing was left behind"):
        job.quantize_and_save(tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_unknown_options_are_errors_with_the_nearest_name(model_dir, registry):
    with pytest.raises(UnknownOptionError, match="batch_size"):
        AutoRound(model_dir, scheme="STEPS4", registry=registry, batchsize=4)
    with pytest.raises(UnknownOptionError, match="group_size"):
        QuantizationScheme.from_dict({"groupsize": 3})


def test_words_of_existing_scripts_are_understood(model_dir, registry, tokens, tmp_path):
    options = {"dataset": tokens, "nsamples": 4, "seqlen": 16, "iters": 1, "verbose": False, "registry": registry}
    fields = {"bits": 4, "data_type": "steps", "group_size": 16}
    job = AutoRound(model_dir, scheme=fields, low_gpu_mem_usage=True, **options)
    job.quantize()
    job.save_quantized(tmp_path / "one", format="auto_round", inplace=True)
    AutoRound(model_dir, **fields, **options).quantize_and_save(tmp_path / "two", inplace=False)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    with pytest.raises(UnknownOptionError, match="group_sise"):
        AutoRound(model_dir, scheme={"group_sise": 16}, **options)
    with pytest.raises(UnknownOptionError, match="off the device"):
        AutoRound(model_dir, scheme=fields, low_gpu_mem_usage=True, activations="device", **options)
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    with pytest.raises(UnknownOptionError, match="changed in place"):
        AutoRound(model, scheme=fields, **options).quantize_and_save(tmp_path / "three", inplace=False)
    assert not (tmp_path / "three").exists()


def test_a_plan_that_changes_nothing_is_an_error(model_dir, registry, tokens):
    with pytest.raises(PlanError, match="no layer"):
        AutoRound(model_dir, scheme="STEPS4", bits=16, dataset=tokens, registry=registry, **RUN).quantize()


def test_padding_does_not_decide_anything(registry):
    """The same samples with garbage behind their padding give the same codes."""
    tokens = torch.randint(4, 250, (8, 16), generator=torch.Generator().manual_seed(1))
    samples = [row[: 16 - i % 3] for i, row in enumerate(tokens)]
    results = []
    for pad in (0, 77):
        tokenizer = make_tokenizer()
        tokenizer.pad_token_id = pad
        job = AutoRound(make_model(), tokenizer, scheme="STEPS4", dataset=samples, iters=6, registry=registry, **RUN)
        results.append(weights(job.quantize()[0]))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
