# SPDX-License-Identifier: Apache-2.0
"""Text that is told again: when, where and with which words."""

import itertools

import pytest
import torch

from auto_round.calibration import CalibrationTokens
from auto_round.tuning import divergence
from auto_round.tuning.retold import Reading, RetoldText, readings

WORDS, LENGTH = 50, 24


@pytest.fixture
def tokens():
    ids = torch.randint(10, WORDS, (4, LENGTH), generator=torch.Generator().manual_seed(0))
    return CalibrationTokens.from_samples([ids[0], ids[1, :9], ids[2], ids[3]], pad_id=0, source="a test")


def said(tokens, reading, words):
    """Log-probabilities of a model that is certain of what follows each real token of a reading."""
    every = torch.full((*reading.samples.shape, LENGTH, WORDS), -torch.inf)
    every.scatter_(-1, words.expand(len(reading.samples), -1).unsqueeze(-1), 0.0)
    return every[tokens.mask[reading.samples]]


def test_a_first_reading_is_of_the_text_itself(tokens):
    text = RetoldText(tokens)
    for reading in itertools.islice(readings(tokens, 2, seed=0), 2):
        assert torch.equal(text.read(reading), tokens.input_ids[reading.samples])


def test_later_ones_have_what_was_drawn_one_place_further_on(tokens):
    text, turns = RetoldText(tokens), readings(tokens, 4, seed=0)
    first, second = next(turns), next(turns)
    words = torch.arange(LENGTH) % 9 + 1  # none of them is in the text
    text.hear(first, said(tokens, first, words))
    read, ids, real = text.read(second), tokens.input_ids[second.samples], tokens.mask[second.samples]
    replaced = second.replaced & real
    replaced[:, 0] = False  # nothing says what a text begins with
    assert replaced.any(1).all()
    assert torch.equal(read[real & ~replaced], ids[real & ~replaced])
    assert torch.equal(read[replaced], words.roll(1).expand_as(read)[replaced])


def test_a_reading_in_parts_is_the_same(tokens):
    whole, parts = RetoldText(tokens), RetoldText(tokens)
    reading = next(readings(tokens, 4, seed=3))
    log_p = torch.randn(4, LENGTH, WORDS, generator=torch.Generator().manual_seed(2)).log_softmax(-1)
    whole.hear(reading, log_p[tokens.mask[reading.samples]])
    for part, of_part in zip(reading.split(3), log_p.split(3), strict=True):
        parts.hear(part, of_part[tokens.mask[part.samples]])
    assert not torch.equal(whole.drawn, tokens.input_ids)
    assert torch.equal(whole.drawn, parts.drawn)


def test_words_come_as_often_as_the_model_says(monkeypatch):
    """20 000 draws from 5 words: each count within five standard deviations of a binomial distribution's mean."""
    monkeypatch.setattr(divergence, "LOGITS_CPU", 1 << 10)
    count = 20_000
    ids = torch.zeros(1, count + 1, dtype=torch.int64)
    tokens = CalibrationTokens(ids, torch.ones_like(ids, dtype=torch.bool), "a test")
    text, p = RetoldText(tokens), torch.tensor([0.5, 0.0, 0.3, 0.001, 0.199])
    text.hear(next(readings(tokens, 1, seed=0)), p.log().expand(1, count + 1, -1))
    counts = torch.bincount(text.drawn[0, 1:], minlength=5)
    assert counts[1] == 0
    assert ((counts - count * p).abs() <= 5 * (count * p * (1 - p)).sqrt()).all()


def test_the_last_word_is_the_last_there_is():
    """A chance next to one, and probabilities that do not add up to one in float32."""
    ids = torch.zeros(1, 2, dtype=torch.int64)
    tokens = CalibrationTokens(ids, torch.ones_like(ids, dtype=torch.bool), "a test")
    text = RetoldText(tokens)
    reading = Reading(torch.tensor([0]), torch.ones_like(ids, dtype=torch.bool), torch.full((1, 2), 1 - 2**-24))
    text.hear(reading, torch.randn(1, 2, 1 << 16, generator=torch.Generator().manual_seed(0)).log_softmax(-1))
    assert 0 <= text.drawn[0, 1] < 1 << 16


def test_readings_depend_on_the_seed_alone(tokens):
    ones, others, different = (itertools.islice(readings(tokens, 2, seed), 5) for seed in (1, 1, 2))
    same = [
        [torch.equal(getattr(a, name), getattr(b, name)) for name in ("samples", "replaced", "chances")]
        for a, b in zip(ones, others, strict=True)
    ]
    assert all(map(all, same))
    assert not all(
        torch.equal(a.chances, b.chances)
        for a, b in zip(itertools.islice(readings(tokens, 2, 1), 5), different, strict=True)
    )
