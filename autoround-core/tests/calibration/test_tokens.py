# SPDX-License-Identifier: Apache-2.0
import hashlib
import struct

import pytest
import torch

from auto_round.calibration import CalibrationTokens
from auto_round.errors import CalibrationError


def make(rows, pad_id=0, source="here"):
    return CalibrationTokens.from_samples([torch.tensor(row) for row in rows], pad_id=pad_id, source=source)


def test_short_samples_are_padded_right_to_the_longest():
    tokens = make([[1, 2, 3], [4]], pad_id=9)
    assert tokens.input_ids.tolist() == [[1, 2, 3], [4, 9, 9]]
    assert tokens.mask.tolist() == [[True, True, True], [True, False, False]]
    assert tokens.input_ids.dtype == torch.int64
    assert tokens.mask.dtype == torch.bool
    assert len(tokens) == 2


def test_fingerprint_is_the_hash_of_shape_ids_and_mask():
    by_hand = hashlib.sha256(b"(2, 3)" + struct.pack("<6q", 1, 2, 3, 4, 0, 0) + bytes([1, 1, 1, 1, 0, 0])).hexdigest()
    assert make([[1, 2, 3], [4]]).fingerprint() == by_hand
    assert by_hand.startswith("fb51c6cbf6db7570"), "journals of earlier versions hold this"


def test_fingerprint_is_of_the_content_alone():
    assert make([[1, 2], [3]]).fingerprint() == make([[1, 2], [3]], source="there").fingerprint()
    strided = CalibrationTokens(torch.tensor([[1, 3], [2, 4]]).T, torch.ones(2, 2, dtype=torch.bool), "")
    assert strided.fingerprint() == make([[1, 2], [3, 4]]).fingerprint()


@pytest.mark.parametrize(
    ("rows", "pad_id"), [([[1, 2], [4]], 0), ([[1, 2], [3, 0]], 0), ([[1, 2, 3]], 0), ([[1, 2], [3]], 7)]
)
def test_fingerprint_changes_with_ids_mask_shape_and_padding(rows, pad_id):
    assert make(rows, pad_id).fingerprint() != make([[1, 2], [3]]).fingerprint()


@pytest.mark.parametrize(
    ("ids", "mask"),
    [
        (torch.ones(2, 3, dtype=torch.int32), torch.ones(2, 3, dtype=torch.bool)),
        (torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3)),
        (torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 2, dtype=torch.bool)),
        (torch.ones(3, dtype=torch.int64), torch.ones(3, dtype=torch.bool)),
    ],
)
def test_other_types_and_shapes_are_refused(ids, mask):
    with pytest.raises(CalibrationError, match=r"int64 ids and a bool mask, both \[samples, seqlen\]"):
        CalibrationTokens(ids, mask, "")


def rows(count, length):
    return CalibrationTokens.from_samples(
        [torch.arange(length) + 100 * n for n in range(count)], pad_id=0, source="rows"
    )


def test_joined_samples_are_the_same_tokens_in_the_same_order():
    joined = rows(6, 4).joined(2, 16)
    assert joined.input_ids.tolist()[0] == [0, 1, 2, 3, 100, 101, 102, 103]
    assert joined.input_ids.shape == (3, 8)
    assert bool(joined.mask.all())
    assert joined.pieces == 2
    assert len(rows(7, 4).joined(2, 16)) == 3  # one is left over


@pytest.mark.parametrize(("count", "length", "longest"), [(6, 4, 7), (1, 4, 16), (6, 4, None)])
def test_samples_that_cannot_be_joined_stay(count, length, longest):
    tokens = rows(count, length)
    assert tokens.joined(2, longest) is tokens
    assert tokens.joined(1, 100) is tokens


def test_padded_samples_stay():
    tokens = CalibrationTokens.from_samples([torch.arange(4), torch.arange(3)], pad_id=0, source="two")
    assert tokens.joined(2, 16) is tokens
