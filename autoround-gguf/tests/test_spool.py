# SPDX-License-Identifier: Apache-2.0
"""Tensors that wait: in a file and not in memory, parts in whatever order they come."""

import weakref

import gguf
import numpy as np
import torch

from auto_round_gguf.spool import Spool


def write(spool, path):
    writer = gguf.GGUFWriter(path, "llama")
    spool.write(writer)
    writer.close()
    return {t.name: t for t in gguf.GGUFReader(path).tensors}


def test_nothing_is_kept_in_memory(tmp_path):
    spool = Spool(tmp_path / "waiting")
    tensor = torch.randn(64, 64)
    memory = weakref.ref(tensor)
    spool.add("blk.0.attn_q.weight", 0, (64, 64), tensor)
    wanted = tensor.numpy().copy()
    del tensor
    assert memory() is None
    assert (tmp_path / "waiting").exists()
    found = write(spool, tmp_path / "model.gguf")
    np.testing.assert_array_equal(found["blk.0.attn_q.weight"].data, wanted)
    assert not (tmp_path / "waiting").exists()


def test_parts_lie_in_their_order_and_tensors_in_that_of_blocks(tmp_path):
    spool = Spool(tmp_path / "waiting")
    experts = torch.arange(3 * 4 * 32, dtype=torch.float32).reshape(3, 4, 32)
    for number in (2, 0, 1):
        spool.add("blk.1.ffn_up_exps.weight", 0, (3, 4, 32), experts[number], number)
    spool.add("blk.0.attn_norm.weight", 0, (32,), torch.ones(32))
    spool.add("token_embd.weight", 0, (2, 32), torch.zeros(1, 32))
    spool.add("token_embd.weight", 0, (2, 32), torch.ones(1, 32))  # in two runs
    found = write(spool, tmp_path / "model.gguf")
    assert list(found) == ["token_embd.weight", "blk.0.attn_norm.weight", "blk.1.ffn_up_exps.weight"]
    np.testing.assert_array_equal(found["blk.1.ffn_up_exps.weight"].data, experts.numpy())
    assert found["token_embd.weight"].data.sum(1).tolist() == [0.0, 32.0]
