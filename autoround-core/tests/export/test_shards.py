# SPDX-License-Identifier: Apache-2.0
"""Shards, their index, and the directory that appears whole or not at all."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from auto_round.errors import OutputError
from auto_round.export.output import check_output, staged_output
from auto_round.export.shards import ShardWriter


def test_one_file_when_everything_fits(tmp_path):
    writer = ShardWriter(tmp_path)
    writer.add("a", torch.ones(3))
    writer.close()
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_file_is_what_safetensors_writes(tmp_path):
    dtypes = [torch.float8_e4m3fn, torch.bool, torch.int64, torch.bfloat16, torch.float32, torch.uint8, torch.float16]
    dtypes += [torch.int8, torch.int32, torch.float64, torch.int16, torch.float8_e5m2]
    dtypes += [torch.float8_e8m0fnu, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.uint16, torch.uint32]
    dtypes += [torch.uint64]
    tensors = {f"größe.{n}": torch.arange(1, n + 4).float().to(dtype) for n, dtype in enumerate(dtypes)}
    tensors |= {"scalar": torch.tensor(2.5), "none": torch.empty(0, 4), "a": torch.ones(3, 5)}
    writer = ShardWriter(tmp_path)
    for name, tensor in tensors.items():
        writer.add(name, tensor)
    writer.close()
    save_file(tensors, tmp_path / "other", metadata={"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "other").read_bytes()


def test_several_files_and_an_index_transformers_reads(tmp_path):
    writer = ShardWriter(tmp_path, shard_bytes=40)
    tensors = {name: torch.full((5,), float(i)) for i, name in enumerate("abc")}
    for name, tensor in tensors.items():
        writer.add(name, tensor)
    writer.close()
    table = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert table["metadata"]["total_size"] == 60
    assert set(table["weight_map"].values()) == {f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}
    for name, tensor in tensors.items():
        assert torch.equal(load_file(tmp_path / table["weight_map"][name])[name], tensor)


def test_tensors_that_share_memory_are_written_each(tmp_path):
    writer = ShardWriter(tmp_path)
    shared = torch.ones(3)
    writer.add("a", shared)
    writer.add("b", shared)
    writer.close()
    assert set(load_file(tmp_path / "model.safetensors")) == {"a", "b"}


def test_files_are_as_readable_as_any_other(tmp_path):
    (tmp_path / "other").touch()
    writer = ShardWriter(tmp_path)
    writer.add("a", torch.ones(3))
    writer.close()
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_name_is_written_once(tmp_path):
    writer = ShardWriter(tmp_path)
    writer.add("a", torch.ones(3))
    with pytest.raises(OutputError, match="twice"):
        writer.add("a", torch.ones(3))


def test_views_and_transposes_are_written_as_they_look(tmp_path):
    writer = ShardWriter(tmp_path)
    whole = torch.arange(6.0).reshape(2, 3)
    writer.add("part", whole[:, 1:])
    writer.add("turned", whole.T)
    writer.close()
    stored = load_file(tmp_path / "model.safetensors")
    assert torch.equal(stored["part"], whole[:, 1:])
    assert torch.equal(stored["turned"], whole.T)


def test_the_directory_appears_when_it_is_complete(tmp_path):
    target = tmp_path / "deep/out"
    with staged_output(target) as staging:
        (staging / "file").write_text("x")
        assert not target.exists()
    assert (target / "file").read_text() == "x"
    assert [p.name for p in target.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_and_not_at_all_when_something_fails(tmp_path, error):
    def fail():
        with staged_output(tmp_path / "out") as staging:
            (staging / "file").write_text("x")
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_take_it(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is a file"):
        check_output(tmp_path / "file", 1)
    with pytest.raises(OutputError, match="not empty"):
        check_output(tmp_path, 1)
    with pytest.raises(OutputError, match="free and the output needs"):
        check_output(tmp_path / "new", 10**18)
    check_output(tmp_path / "new/deeper", 1)
