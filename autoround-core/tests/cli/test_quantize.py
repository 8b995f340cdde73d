# SPDX-License-Identifier: Apache-2.0
"""`auto-round quantize` and `auto-round plan`, as typed: what comes out, and one sentence for every mistake."""

import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from auto_round.cli.main import main
from auto_round.plugins import default_registry


@pytest.fixture(autouse=True)
def installed(steps_plugin):
    registry = default_registry()
    registry.register(steps_plugin, name="steps")
    yield
    registry.unregister("steps")


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "calibration.txt"
    file.write_text(" ".join(f"w{(i * 7 + i // 11) % 250}" for i in range(400)))
    return file


@pytest.fixture
def run(model_dir, text, tmp_path):
    """Type the command; `quantize` unless other words come first."""

    def type_(*words, model=model_dir, dataset=text, output=tmp_path / "out"):
        given = ["--dataset", str(dataset), "--nsamples", "8", "--seqlen", "16", "--batch_size", "4", "--iters", "2"]
        named = ["--scheme", "STEPS4"] if "--scheme" not in words else []
        return CliRunner().invoke(main, ["quantize", str(model), *named, *given, "--output_dir", str(output), *words])

    return type_


def test_a_checkpoint_and_what_it_took(run, tmp_path):
    result = run()
    assert result.exit_code == 0, result.output
    assert "14 of 15 linear layers" in result.output
    assert "[2/2] model.layers.1: loss" in result.stderr
    assert sorted(p.name for p in (tmp_path / "out").glob("*.safetensors")) == ["model.safetensors"]


def test_the_flags_people_already_type(model_dir, text, tmp_path):
    words = [
        "--model",
        str(model_dir),
        "--scheme",
        "STEPS4",
        "--format",
        "auto_round",
        "--output_dir",
        str(tmp_path / "o"),
    ]
    result = CliRunner().invoke(
        main, [*words, "--dataset", str(text), "--seqlen", "16", "--nsamples", "4", "--iters", "1"]
    )
    assert result.exit_code == 0, result.output
    assert (tmp_path / "o/config.json").is_file()


def nan_in(model):
    file = model / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})


def cut_short(model):
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])


def without_tokenizer(model):
    for file in model.glob("tokenizer*"):
        file.unlink()


@pytest.mark.parametrize(
    ("words", "damage", "sentence"),
    [
        (["--scheme", "STEPS5"], None, "did you mean STEPS4"),
        (["--data_type", "nothing"], None, "'nothing'"),
        (["--format", "auto_ruond"], None, "auto_round"),
        (["--bits", "0"], None, "bits must be"),
        (["--layer_config", '{"layers.9": {"bits": 8}}'], None, "matches no layer"),
        (["--layer_config", '{"layers.1": {"bit": 8}}'], None, "no field 'bit'; did you mean bits"),
        (["--seqlen", "9999"], None, "64 positions"),
        (["--nsamples", "500"], None, "nsamples"),
        ([], nan_in, "model.layers.0.mlp.up_proj.weight"),
        ([], cut_short, "damaged or cut short"),
        ([], without_tokenizer, "no tokenizer"),
    ],
)
def test_one_sentence_and_nothing_left_behind(run, model_dir, tmp_path, words, damage, sentence):
    if damage:
        damage(model_dir)
    result = run(*words)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ") or "error: " in result.stderr
    assert sentence in result.stderr
    assert "Traceback" not in result.output
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("words", [["--schem", "STEPS4"], ["--iters", "many"], ["--layer_config", "{"]])
def test_what_click_refuses(run, words, tmp_path):
    result = run(*words)
    assert result.exit_code == 2
    assert not list(tmp_path.glob("out*"))


def test_no_such_model_and_no_such_text(run, tmp_path):
    assert "does not exist" in run(model=tmp_path / "nowhere").stderr
    assert "no such file" in run(dataset=tmp_path / "nowhere.txt").stderr


def test_an_output_that_is_there_already(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").touch()
    assert "not empty" in run().stderr


def test_plan_for_people_and_for_programs(model_dir):
    shown = CliRunner().invoke(main, ["plan", str(model_dir), "--scheme", "STEPS4"])
    assert shown.exit_code == 0, shown.output
    assert "model.layers.1.mlp.down_proj" in shown.output
    assert "outside the blocks" in shown.output
    assert "model.embed_tokens" in shown.output
    assert "be killed" not in shown.output
    told = json.loads(CliRunner().invoke(main, ["plan", str(model_dir), "--scheme", "STEPS4", "--json"]).output)
    assert told["blocks"] == ["model.layers.0", "model.layers.1"]
    assert len(told["layers"]) == 15
    assert told["kept"][0]["bytes"] == 256 * 32 * 2
    assert told["layers"][0]["data_type"] == "steps"
    assert told["unused"] == []


def test_a_plan_tells_what_files_have_beside_the_model(model_dir, tmp_path):
    shutil.copytree(model_dir, tmp_path / "more")
    file = tmp_path / "more/model.safetensors"
    save_file({**load_file(file), "next.proj.weight": torch.ones(8, 8)}, file, metadata={"format": "pt"})
    command = ["plan", str(file.parent), "--scheme", "STEPS4", "--format", "auto_round", "--json"]
    told = json.loads(CliRunner().invoke(main, command).output)
    assert told["unused"] == ["next.proj"]
    assert "LlamaForCausalLM does not use, next.proj: they are written as they are" in told["notes"][0]


def test_plan_says_when_there_is_too_little_memory(model_dir, monkeypatch):
    monkeypatch.setattr("auto_round.run.memory.free_memory", lambda: 1)
    command = ["plan", str(model_dir), "--scheme", "STEPS4"]
    assert "--low-memory (low_memory=True) needs" in CliRunner().invoke(main, command).output
    best = CliRunner().invoke(main, [*command, "--recipe", "best"]).output
    assert "killed; smaller batches" in best
