# SPDX-License-Identifier: Apache-2.0
"""Where activations are kept, and what of them is in files."""

import pytest
import torch

from auto_round.calibration.store import ActivationStore

CPU = torch.device("cpu")
SOME = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).bfloat16()


def made(store, values=SOME):
    tensor = store.like(values)
    tensor.copy_(values)
    return tensor


def read(folder, name):
    return torch.frombuffer(bytearray((folder / name).read_bytes()), dtype=SOME.dtype).view(SOME.shape)


@pytest.mark.parametrize("memory", [None, CPU])
def test_a_file_has_what_the_tensor_has(tmp_path, memory):
    store = ActivationStore(tmp_path, memory)
    one, other = made(store), made(store, SOME * 2)
    names = [store.file_of(one), store.file_of(other)]
    assert torch.equal(read(tmp_path, names[0]), SOME)
    assert torch.equal(read(tmp_path, names[1]), SOME * 2)
    # Asked again, the same file, which is not written twice.
    assert [store.file_of(one), store.file_of(other)] == names
    assert len(list(tmp_path.iterdir())) == 2


def test_memory_is_left_to_files_until_they_are_asked_for(tmp_path):
    made(ActivationStore(tmp_path, CPU))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("memory", [None, CPU])
def test_what_an_earlier_run_left_is_found(tmp_path, memory):
    earlier = ActivationStore(tmp_path, CPU)
    name = earlier.file_of(made(earlier))
    store = ActivationStore(tmp_path, memory)
    found = store.open(name, SOME.dtype, tuple(SOME.shape))
    assert torch.equal(found, SOME)
    assert store.file_of(found) == name
    assert store.file_of(made(store)) != name
    store.keep({name})
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_tensor_that_takes_the_place_of_another_is_another(tmp_path):
    """Memory is used again, and so are its addresses."""
    store, names, addresses = ActivationStore(tmp_path, CPU), set(), []
    for number in range(1000):  # until it happened twice; when, is up to the allocator
        tensor = made(store, torch.full_like(SOME, number))
        addresses.append(tensor.data_ptr())
        name = store.file_of(tensor)
        assert name not in names
        assert torch.equal(read(tmp_path, name), tensor)
        names.add(name)
        del tensor
        if len(addresses) - len(set(addresses)) >= 2:
            return
    pytest.fail("no address was ever used again")


def test_files_that_do_not_last_have_no_name(tmp_path):
    tensor = made(ActivationStore(tmp_path, lasting=False))
    assert torch.equal(tensor, SOME)
    assert list(tmp_path.iterdir()) == []
