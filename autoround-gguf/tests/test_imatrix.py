# SPDX-License-Identifier: Apache-2.0
"""Importance files, both kinds, against readers written here from their description."""

import struct

import gguf
import numpy as np
import pytest
import torch

from auto_round.errors import CalibrationError
from auto_round_gguf.imatrix import ImportanceFile, read_imatrix, write_imatrix


@pytest.fixture
def importance():
    generator = torch.Generator().manual_seed(0)
    sums = {
        "blk.0.attn_q.weight": torch.rand(256, generator=generator) * 100,
        "blk.0.ffn_down_exps.weight": torch.rand(4, 64, generator=generator),
    }
    return ImportanceFile.of_sums(sums, tokens=1024, datasets=["calibration.txt"], chunk_size=256)


@pytest.mark.parametrize("name", ["imatrix.gguf", "imatrix.dat"])
def test_what_is_read_is_what_was_written(tmp_path, importance, name):
    write_imatrix(tmp_path / name, importance)
    found = read_imatrix(tmp_path / name)
    assert found.datasets == ("calibration.txt",)
    assert found.chunks == 4
    for matrix, means in importance.means.items():
        wanted = means if name.endswith("gguf") else means.flatten()  # the older kind has no shapes
        torch.testing.assert_close(found.means[matrix], wanted, rtol=1e-6, atol=0)  # scaled and scaled back


def test_the_newer_kind_as_llama_cpp_reads_it(tmp_path, importance):
    write_imatrix(tmp_path / "i.gguf", importance)
    reader = gguf.GGUFReader(tmp_path / "i.gguf")
    assert reader.fields["general.type"].contents() == "imatrix"
    assert "general.architecture" not in reader.fields
    assert reader.fields["imatrix.chunk_count"].contents() == 4
    assert reader.fields["imatrix.chunk_size"].contents() == 256
    assert reader.fields["imatrix.datasets"].contents() == ["calibration.txt"]
    tensors = {t.name: t for t in reader.tensors}
    assert list(tensors["blk.0.attn_q.weight.in_sum2"].shape) == [256, 1]
    assert list(tensors["blk.0.ffn_down_exps.weight.counts"].shape) == [1, 4]
    sums, counts = (tensors[f"blk.0.ffn_down_exps.weight.{part}"].data for part in ("in_sum2", "counts"))
    np.testing.assert_allclose(sums / counts, importance.means["blk.0.ffn_down_exps.weight"], rtol=1e-6)


def test_the_older_kind_as_llama_cpp_reads_it(tmp_path, importance):
    write_imatrix(tmp_path / "i.dat", importance)
    data = (tmp_path / "i.dat").read_bytes()
    (entries, length) = struct.unpack_from("<ii", data)
    assert entries == 2
    assert data[8 : 8 + length] == b"blk.0.attn_q.weight"
    calls, values = struct.unpack_from("<ii", data, 8 + length)
    means = np.frombuffer(data, "<f4", values, 16 + length) / calls
    np.testing.assert_allclose(means, importance.means["blk.0.attn_q.weight"], rtol=1e-6)
    assert data.endswith(struct.pack("<i", len("calibration.txt")) + b"calibration.txt")


def test_an_expert_without_tokens_has_even_importance(tmp_path):
    sums = torch.rand(2, 32) + 1
    file = ImportanceFile({"e": torch.stack([sums[0], torch.zeros(32)])}, {"e": torch.tensor([8.0, 0.0])})
    write_imatrix(tmp_path / "i.gguf", file)
    assert torch.equal(read_imatrix(tmp_path / "i.gguf").means["e"][1], torch.ones(32))


@pytest.mark.parametrize("content", [b"", b"GGUF", b"\x02\x00\x00\x00garbage", b"\xff" * 40])
def test_damaged_files_are_named(tmp_path, content):
    (tmp_path / "i.dat").write_bytes(content)
    with pytest.raises(CalibrationError, match="i.dat is no importance file"):
        read_imatrix(tmp_path / "i.dat")
