# SPDX-License-Identifier: Apache-2.0
"""A model that is read block by block and let go of gives the files of one that stays in memory."""

import importlib
import threading
import time

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from auto_round import AutoRound, hookimpl
from auto_round.export.checkpoint import CheckpointExporter
from auto_round.export.named import NamedCodes
from auto_round.run.journal import Journal
from auto_round.run.progress import SilentProgress

pytestmark = pytest.mark.slow

ARCHITECTURES = ["llama", "tied", "gpt2", "gemma3", "qwen3_moe", "mixtral", "gpt_oss", "deepseek"]
WAYS = {
    "tuned": {"iters": 3, "lr": 0.1, "bits": 3},
    "searched": {"iters": 0},
    "rounded": {"iters": 0, "disable_opt_rtn": True},
}


@pytest.fixture
def write(registry, tokens, tmp_path, content):
    """Quantize a directory and return the files that were written."""
    count = 0

    def run(directory, *, format="auto_round", dataset=tokens, **options):
        nonlocal count
        count += 1
        output = tmp_path / f"out{count}"
        given = {"scheme": "STEPS4", "nsamples": len(dataset), "batch_size": 4, "verbose": False, **options}
        job = AutoRound(directory, dataset=dataset, registry=registry, **given)
        job.quantize_and_save(output, format)
        assert not list(tmp_path.glob("*.unfinished"))
        return content(output), job

    return run


def assert_equal_files(files, others):
    assert files.keys() == others.keys()
    assert [name for name in files if files[name] != others[name]] == []


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_same_files(stored, write, architecture, way):
    directory = stored(architecture)
    kept, _ = write(directory, **WAYS[way])
    streamed, job = write(directory, low_cpu_mem_usage=True, **WAYS[way])
    assert_equal_files(streamed, kept)
    blocks = [job.model.get_submodule(name) for name in job.plan().blocks]
    assert all(tensor.is_meta for block in blocks for tensor in block.parameters())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("architecture", ["llama", "tied"])
def test_the_output_layer_too(stored, write, architecture, way):
    options = {"quant_lm_head": True, **WAYS[way]}
    kept, _ = write(stored(architecture), **options)
    streamed, job = write(stored(architecture), low_cpu_mem_usage=True, **options)
    assert_equal_files(streamed, kept)
    assert any(layer.name == "lm_head" for layer in job.plan().quantized)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3_moe", "mixtral"])
def test_any_number_of_workers(stored, write, architecture):
    expected, _ = write(stored(architecture), **WAYS["rounded"])
    for workers in (1, 2, 4):
        for low in (False, True):
            files, _ = write(stored(architecture), workers=workers, low_cpu_mem_usage=low, **WAYS["rounded"])
            assert_equal_files(files, expected)


@pytest.mark.parametrize(("threads", "workers", "each"), [(4, 2, 2), (5, 2, 2), (2, 3, 1), (3, 1, 3)])
def test_workers_share_the_threads(stored, write, registry, monkeypatch, threads, workers, each):
    met, data_type = set(), type(registry.data_type("steps"))
    encode = data_type.encode

    def noted(self, *args, **offers):
        if threading.current_thread() is not threading.main_thread():  # which tries what formats do to a layer
            met.add(torch.get_num_threads())
        return encode(self, *args, **offers)

    monkeypatch.setattr(data_type, "encode", noted)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        write(stored("llama"), workers=workers, **WAYS["rounded"])
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert met == {each}


@pytest.mark.parametrize("low", [False, True])
def test_decoded_weights_are_held_for_a_model_that_stays(stored, write, monkeypatch, low):
    """Where no model does, codes are all that waits to be written."""
    seen = []
    start = CheckpointExporter.add
    monkeypatch.setattr(
        CheckpointExporter, "add", lambda self, result: seen.append(result.decoded is None) or start(self, result)
    )
    write(stored("llama"), low_cpu_mem_usage=low, **WAYS["rounded"])
    assert set(seen) == {low}


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3_moe", "mixtral"])
def test_nothing_is_rounded_while_the_model_is_built(stored, write, monkeypatch, architecture):
    """Building changes torch's default dtype, for other threads too."""
    running, met = [], []

    def counted(where, name):
        original = getattr(importlib.import_module(where), name)

        def call(*args, **options):
            running.append(name)
            met.extend({"build", "round_layers"} & set(running) if len(set(running)) > 1 else ())
            time.sleep(0.05)
            try:
                return original(*args, **options)
            finally:
                running.remove(name)

        monkeypatch.setattr(f"{where}.{name}", call)

    counted("auto_round.model.opened", "build")
    counted("auto_round.tuning.rounding", "round_layers")
    write(stored(architecture), workers=2, low_cpu_mem_usage=True, **WAYS["rounded"])
    assert not met


@pytest.mark.parametrize("way", ["tuned", "searched"])
def test_activations_with_fixed_scales(stored, write, way):
    options = {**WAYS[way], "act_bits": 6, "act_group_size": -1, "act_data_type": "steps", "act_dynamic": False}
    kept, _ = write(stored("llama"), **options)
    streamed, _ = write(stored("llama"), low_cpu_mem_usage=True, **options)
    assert_equal_files(streamed, kept)
    weights_only, _ = write(stored("llama"), **WAYS[way])
    assert streamed["model.safetensors"] != weights_only["model.safetensors"]


@pytest.mark.parametrize("way", WAYS)
def test_float16_in_which_a_cpu_does_not_compute(stored, write, way):
    directory = stored("gpt_oss", torch.float16)
    kept, _ = write(directory, **WAYS[way])
    streamed, _ = write(directory, low_cpu_mem_usage=True, **WAYS[way])
    assert_equal_files(streamed, kept)


def test_several_formats_from_several_files(stored, write):
    directory = stored("qwen3_moe", shards="20KB")
    kept, _ = write(directory, format="auto_round,fake", **WAYS["tuned"])
    streamed, _ = write(directory, format="auto_round,fake", low_cpu_mem_usage=True, **WAYS["tuned"])
    assert_equal_files(streamed, kept)
    assert {name.split("/")[0] for name in streamed} == {"auto_round", "fake"}


class Insisted(NamedCodes):
    name = "auto_round:insisted"


def test_a_folder_for_each_format_is_where_it_is_said_to_be(stored, registry, tmp_path):
    class Plugin:
        @hookimpl
        def exporters(self):
            return [Insisted(registry)]

    registry.register(Plugin(), name="insisted")
    job = AutoRound(stored("llama"), scheme="STEPS4", registry=registry, verbose=False, **WAYS["rounded"])
    _, folders = job.quantize_and_save(tmp_path / "out", "auto_round:insisted,fake")
    assert sorted(folders) == sorted(str(folder) for folder in (tmp_path / "out").iterdir())


def test_samples_of_different_lengths(stored, write, tokens):
    dataset = [row[: 16 - n % 3] for n, row in enumerate(tokens)][:7]
    kept, _ = write(stored("llama"), dataset=dataset, **WAYS["tuned"])
    streamed, _ = write(stored("llama"), dataset=dataset, low_cpu_mem_usage=True, **WAYS["tuned"])
    assert_equal_files(streamed, kept)


@pytest.mark.parametrize("way", WAYS)
def test_a_model_object_stays(stored, write, tmp_path, way):
    """There are no files to read it from again, and whoever made it wants it changed."""
    model = AutoModelForCausalLM.from_pretrained(stored("llama"), dtype="auto")
    before = model.model.layers[1].mlp.up_proj.weight.clone()
    write(model, format="fake", low_cpu_mem_usage=True, **WAYS[way])
    written = load_file(tmp_path / "out1" / "model.safetensors")
    assert torch.equal(model.model.layers[1].mlp.up_proj.weight, written["model.layers.1.mlp.up_proj.weight"])
    assert not torch.equal(model.model.layers[1].mlp.up_proj.weight, before)


class Watching(SilentProgress):
    """Notes at every step which blocks have weights."""

    def __init__(self, job):
        self.job, self.seen = job, []

    def step(self):
        model, blocks = self.job._open.model, self.job._open.structure.blocks
        self.seen.append([b for b in blocks if any(not p.is_meta for p in model.get_submodule(b).parameters())])

    def start(self, blocks, steps_per_block, done=0, together=0):
        self.step()

    def block(self, result):
        self.step()


@pytest.fixture
def watched(registry, tokens, monkeypatch):
    def make(directory, **options):
        job = AutoRound(
            directory, scheme="STEPS4", dataset=tokens, registry=registry, nsamples=8, batch_size=4,
            low_cpu_mem_usage=True, **options,
        )  # fmt: skip
        watching = Watching(job)
        monkeypatch.setattr("auto_round.autoround.default_progress", lambda: watching)
        return job, watching

    return make


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("architecture", ["llama", "qwen3_moe", "mixtral", "gpt_oss"])
def test_one_block_at_a_time(stored, watched, tmp_path, architecture, way):
    job, watching = watched(stored(architecture), **WAYS[way])
    job.quantize_and_save(tmp_path / "out")
    assert max(len(blocks) for blocks in watching.seen) <= 1
    if way == "tuned":
        # Every block in its turn, at every step.
        for block in job.plan().blocks:
            assert watching.seen.count([block]) >= WAYS[way]["iters"]
    if way == "rounded" and architecture in ("llama", "qwen3_moe"):
        assert job._open.loader is None  # no model was made at all


def test_one_block_at_a_time_when_it_goes_on(stored, watched, tmp_path, monkeypatch):
    original = Journal.add

    def add(journal, *args):
        if journal.done == 2:
            raise KeyboardInterrupt
        original(journal, *args)

    job, _ = watched(stored("llama"), **WAYS["tuned"])
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", add)
        with pytest.raises(KeyboardInterrupt):
            job.quantize_and_save(tmp_path / "out")
    job, watching = watched(stored("llama"), **WAYS["tuned"])
    job.quantize_and_save(tmp_path / "out")
    assert [blocks for blocks in watching.seen if blocks not in ([], ["model.layers.2"])] == []
