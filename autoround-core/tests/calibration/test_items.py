# SPDX-License-Identifier: Apache-2.0
"""What a Python object may be: lists, tensors, records, loaders; and what is refused."""

import itertools

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from auto_round.calibration import load_calibration
from auto_round.errors import CalibrationError

IDS = [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]
RECORDS = [{"input_ids": row} for row in IDS]


def load(dataset, tokenizer=None, nsamples=3, seqlen=4, **options):
    return load_calibration(dataset, tokenizer, nsamples=nsamples, seqlen=seqlen, **options)


class MapStyle(Dataset):
    """Has `__getitem__` and no `__iter__`, as torch's own data sets."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return torch.tensor(IDS[index])


class EndlessLoader:
    """What existing scripts pass: not even a DataLoader."""

    batch_size = 1

    def __iter__(self):
        while True:
            yield torch.ones([1, 10], dtype=torch.long)


def numpy_readonly():
    array = np.array(IDS, dtype=np.uint16)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "dataset",
    [
        IDS,
        tuple(IDS),
        torch.tensor(IDS),
        torch.tensor(IDS, dtype=torch.int32),
        numpy_readonly(),
        [torch.tensor(row) for row in IDS],
        [torch.tensor([row]) for row in IDS],
        [torch.tensor(IDS[:2]), torch.tensor(IDS[2:])],
        [np.array(row) for row in IDS],
        [list(np.array(row)) for row in IDS],
        [IDS[:2], IDS[2:]],
        RECORDS,
        {"input_ids": IDS},
        {"input_ids": torch.tensor(IDS), "attention_mask": torch.ones(3, 4)[:, :].long(), "labels": torch.tensor(IDS)},
        [{"input_ids": torch.tensor(IDS[:2])}, {"input_ids": IDS[2]}],
        [(torch.tensor(IDS), torch.ones(3, 4, dtype=torch.bool))],
        MapStyle(),
        DataLoader(MapStyle(), batch_size=2),
        DataLoader(MapStyle(), batch_size=None),
        DataLoader(TensorDataset(torch.tensor(IDS)), batch_size=2),
        DataLoader(TensorDataset(torch.tensor(IDS), torch.ones(3, 4, dtype=torch.bool)), batch_size=2),
        DataLoader([{"input_ids": torch.tensor(row)} for row in IDS], batch_size=3),
        DataLoader([torch.tensor(row) for row in IDS], batch_size=3, collate_fn=list),
        iter(IDS),
        (row for row in IDS),
    ],
    ids=lambda dataset: type(dataset).__name__,
)
def test_the_same_tokens_in_every_guise(dataset):
    tokens = load(dataset)
    assert tokens.input_ids.tolist() == IDS
    assert tokens.mask.all()


def test_longer_token_samples_are_cut_and_shorter_ones_padded():
    tokens = load([[1, 2, 3, 4, 5, 6], [7], [8, 9]], seqlen=3)
    assert tokens.input_ids.tolist() == [[1, 2, 3], [7, 0, 0], [8, 9, 0]]
    assert tokens.mask.tolist() == [[True, True, True], [True, False, False], [True, True, False]]


def test_token_samples_are_taken_in_order_long_or_short():
    assert load([[1], [2, 3, 4, 5], [6]], nsamples=2).input_ids[:, 0].tolist() == [1, 2]


def test_one_sample():
    assert load([1, 2, 3], nsamples=1).input_ids.tolist() == [[1, 2, 3]]
    assert load(torch.tensor([1, 2, 3]), nsamples=1).input_ids.tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("as_tensor", [torch.tensor, list], ids=["tensor", "list"])
def test_padding_on_either_side_is_replaced_by_padding_on_the_right(as_tensor):
    batch = {
        "input_ids": as_tensor([[0, 0, 1, 2], [3, 4, 0, 0], [5, 6, 7, 0]]),
        "attention_mask": as_tensor([[0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]),
    }
    tokens = load([batch])
    assert tokens.input_ids.tolist() == [[1, 2, 0], [3, 4, 0], [5, 6, 7]]
    assert tokens.mask.tolist() == [[True, True, False], [True, True, False], [True, True, True]]


def test_a_batch_from_a_tokenizer(tokenizer):
    tokenizer.padding_side = "left"
    try:
        batch = tokenizer(["w1 w2 w3", "w4"], padding=True, return_tensors="pt")
    finally:
        tokenizer.padding_side = "right"
    tokens = load(batch, tokenizer, nsamples=2)
    assert tokens.input_ids.tolist() == [[1, 5, 6, 7], [1, 8, 0, 0]]
    assert tokens.mask.tolist() == [[True] * 4, [True, True, False, False]]


def test_samples_without_tokens_do_not_count():
    masked = {"input_ids": [[1, 2], [3, 4]], "attention_mask": [[0, 0], [1, 1]]}
    with pytest.raises(CalibrationError, match=r"gives 1 sample, 3 are asked for: pass nsamples=1 or more data\."):
        load([[], masked, torch.empty(0, 5, dtype=torch.long)])


def test_endless_loaders_stop_after_nsamples():
    tokens = load(EndlessLoader(), nsamples=5, seqlen=2048)
    assert tokens.input_ids.shape == (5, 10)
    assert tokens.source == "EndlessLoader: 5 samples of at most 2048 tokens"


def test_only_the_batches_needed_are_read():
    read = itertools.count()
    load((torch.full((2, 4), next(read)) for _ in itertools.count()), nsamples=3)
    assert next(read) == 2


def test_texts_in_every_guise(tokenizer, words):
    texts = [words(20, first) for first in range(4)]
    expected = load(texts, tokenizer, nsamples=4, seqlen=16).input_ids
    for dataset in (
        tuple(texts),
        iter(texts),
        [{"text": text, "id": 1} for text in texts],
        {"text": texts},
        DataLoader(texts, batch_size=3),
        DataLoader([{"text": text} for text in texts], batch_size=3),
    ):
        assert torch.equal(load(dataset, tokenizer, nsamples=4, seqlen=16).input_ids, expected)


def test_a_data_set_of_the_datasets_library(tokenizer, words):
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_dict({"text": [words(20), words(30)], "meta": [1, 2]})
    assert load(dataset, tokenizer, nsamples=2, seqlen=16).input_ids.shape == (2, 16)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (7, "dataset is of type int: pass a file name"),
        (b"text", "dataset is of type bytes"),
        ([3.5, 1.0], "whole numbers"),
        ([None], r"dataset\[0\] is of type NoneType: items are texts"),
        ([[1, 2], {"content": "x", "id": 1}], r'dataset\[1\] has no "text" field .*\(it has: content, id\)'),
        ([{}], r"\(it has: nothing\)"),
        ([{"text": 5}], r'dataset\[0\]: "text" holds int, not a string'),
        ([{"input_ids": None}], "input_ids is of type NoneType, not token ids"),
        ([{"input_ids": "abc"}], "input_ids is of type str, not token ids"),
        ([torch.ones(2, 3)], r"dataset\[0\]: input_ids are torch.float32, not whole numbers"),
        ([torch.ones(2, 3, dtype=torch.bool)], "torch.bool, not whole numbers"),
        ([torch.ones(2, 3, 4, dtype=torch.long)], r"has the shape \(2, 3, 4\)"),
        (torch.tensor(5), r"has the shape \(\)"),
        ([[1, "a"]], "input_ids is not a list of whole numbers"),
        ([[4, -100]], "input_ids holds -100, and no token has a negative id"),
        ([{"input_ids": [1, 2], "attention_mask": [1]}], "attention_mask and input_ids are of different shapes"),
        ([{"input_ids": [[1, 2]], "attention_mask": [[1, 1], [1, 1]]}], "of different shapes"),
        (DataLoader(TensorDataset(torch.tensor(IDS), torch.tensor(IDS))), "is 2 tensors and which of them holds"),
        ([(torch.tensor(IDS),) * 3], "is 3 tensors and which of them holds token ids cannot be known"),
    ],
)
def test_what_is_refused(dataset, message):
    with pytest.raises(CalibrationError, match=message):
        load(dataset)


def test_errors_of_a_loader_are_its_own():
    def broken():
        yield [1, 2]
        raise RuntimeError("the disk fell out")

    with pytest.raises(RuntimeError, match="fell out"):
        load(broken())
