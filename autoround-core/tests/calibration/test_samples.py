# SPDX-License-Identifier: Apache-2.0
"""Texts to samples: which are chosen, how they are cut, padded and packed, and what is too little."""

import itertools
import logging

import pytest
import torch
from hypothesis import given, strategies as st

from auto_round.calibration import load_calibration
from auto_round.calibration.samples import Request, select_samples
from auto_round.errors import CalibrationError

BOS, EOS, PAD, FIRST = 1, 2, 0, 4


def test_texts_of_full_length_are_taken_in_order_and_cut(tokenizer, words):
    texts = [words(30), words(5), words(40, first=10), words(50, first=20)]
    tokens = load_calibration(texts, tokenizer, nsamples=2, seqlen=24)
    assert tokens.input_ids.tolist() == [[BOS, *range(FIRST, FIRST + 23)], [BOS, *range(FIRST + 10, FIRST + 33)]]
    assert tokens.mask.all()
    assert tokens.source == "list: 2 samples of at most 24 tokens"


def test_where_long_texts_are_too_few_the_longest_short_ones_follow(tokenizer, words):
    texts = [words(16, first=1), words(18, first=2), words(30, first=3), words(17, first=4), words(18, first=5)]
    tokens = load_calibration(texts, tokenizer, nsamples=4, seqlen=24)
    assert tokens.input_ids[:, 1].tolist() == [FIRST + first for first in (3, 2, 5, 4)]
    assert tokens.mask.sum(dim=1).tolist() == [24, 19, 19, 18]
    assert (tokens.input_ids[~tokens.mask] == PAD).all()


def test_samples_are_no_longer_than_the_longest_text(tokenizer, words):
    tokens = load_calibration([words(20), words(16)], tokenizer, nsamples=2, seqlen=2048)
    assert tokens.input_ids.shape == (2, 21)


def test_padding_is_end_of_text_where_there_is_no_padding_token(words):
    class Tokenizer:
        eos_token_id = 77

        def __call__(self, text, **options):
            return {"input_ids": [5] * len(text.split())}

    tokens = load_calibration([words(20), words(16)], Tokenizer(), nsamples=2, seqlen=32)
    assert tokens.input_ids[1, 16:].tolist() == [77] * 4
    assert load_calibration([[1, 2], [3]], None, nsamples=2, seqlen=4).input_ids.tolist() == [[1, 2], [3, 0]]


@pytest.mark.parametrize("nsamples", [3, 1])
def test_too_few_texts(tokenizer, words, nsamples):
    texts = [words(14), words(15), words(16)]
    if nsamples == 1:
        texts = texts[:1]
    message = {
        3: r"gives 2 samples of at least 16 tokens, 3 are asked for: pass nsamples=2 or more text\.",
        1: r"gives no sample of at least 16 tokens, 1 are asked for: pass more text\.",
    }[nsamples]
    with pytest.raises(CalibrationError, match=message):
        load_calibration(texts, tokenizer, nsamples=nsamples, seqlen=64)


def test_a_shorter_seqlen_asks_for_no_more_than_itself(tokenizer, words):
    assert len(load_calibration([words(3), words(4)], tokenizer, nsamples=2, seqlen=4)) == 2


def test_no_samples_at_all():
    with pytest.raises(CalibrationError, match=r"\(list\) gives no sample, 4 are asked for: pass more data"):
        load_calibration([], None, nsamples=4, seqlen=8)


@pytest.mark.parametrize(("nsamples", "seqlen", "name"), [(0, 8, "nsamples"), (8, -1, "seqlen")])
def test_sizes_below_one(nsamples, seqlen, name):
    with pytest.raises(CalibrationError, match=f"{name} is .*at least 1"):
        load_calibration([[1, 2]], None, nsamples=nsamples, seqlen=seqlen)


@pytest.mark.parametrize("pack", [False, True])
def test_text_without_a_tokenizer(words, pack):
    with pytest.raises(CalibrationError, match="pass a tokenizer with it, or pass tokens"):
        load_calibration([words(40)], None, nsamples=1, seqlen=8, pack=pack)


def test_no_more_texts_are_read_than_needed(tokenizer, words):
    read = itertools.count()

    def endless():
        while True:
            next(read)
            yield words(40)

    assert len(load_calibration(endless(), tokenizer, nsamples=3, seqlen=8)) == 3
    assert next(read) == 3


def test_endless_short_texts_come_to_an_end(tokenizer, words):
    tokens = load_calibration(itertools.cycle([words(15), words(16)]), tokenizer, nsamples=2, seqlen=64)
    assert tokens.input_ids.shape == (2, 17)
    with pytest.raises(CalibrationError, match="gives no sample of at least 16 tokens"):
        load_calibration(itertools.cycle(["w1", []]), tokenizer, nsamples=2, seqlen=64)


def test_of_a_long_text_only_the_beginning_is_tokenized(tokenizer, words):
    seen = []

    def watching(text, **options):
        seen.append(len(text))
        return tokenizer(text, **options)

    text = words(10_000)
    tokens = load_calibration([text], watching, nsamples=1, seqlen=8)
    assert tokens.input_ids.tolist() == [tokenizer(text)["input_ids"][:8]]
    assert seen == [256]


def test_a_text_with_few_tokens_for_its_length_is_read_on(tokenizer, words):
    text = (" " * 400).join(words(50).split())
    tokens = load_calibration([text], tokenizer, nsamples=1, seqlen=24)
    assert tokens.input_ids.tolist() == [tokenizer(text)["input_ids"][:24]]


def test_the_tokenizer_says_nothing_about_long_texts(tokenizer, words, caplog, monkeypatch):
    monkeypatch.setattr(tokenizer, "model_max_length", 8)
    monkeypatch.setattr(tokenizer, "deprecation_warnings", {})
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    load_calibration([words(40)], tokenizer, nsamples=1, seqlen=16)
    assert caplog.text == ""
    tokenizer(words(40))
    assert "longer than the specified maximum" in caplog.text, "or else this test shows nothing"


# --- packing


def test_packed_texts_are_joined_with_end_of_text_and_cut(tokenizer):
    tokens = load_calibration(["w0 w1", "w2", "", "w3 w4 w5"], tokenizer, nsamples=2, seqlen=6, pack=True)
    # An empty text is still <s>.
    assert tokens.input_ids.tolist() == [[BOS, 4, 5, EOS, BOS, 6], [EOS, BOS, EOS, BOS, 7, 8]]
    assert tokens.mask.all()
    assert tokens.source == "list: 2 packed windows of 6 tokens"


def test_one_long_text_fills_many_windows(tokenizer, words):
    tokens = load_calibration([words(99)], tokenizer, nsamples=10, seqlen=10, pack=True)
    assert tokens.input_ids.flatten().tolist() == [BOS, *range(FIRST, FIRST + 99)]


def test_end_of_text_is_not_doubled(tokenizer):
    tokens = load_calibration([[5, EOS], [6], [7]], tokenizer, nsamples=1, seqlen=5, pack=True)
    assert tokens.input_ids.tolist() == [[5, EOS, 6, EOS, 7]]


def test_tokens_are_packed_without_a_tokenizer():
    tokens = load_calibration([[1, 2], torch.tensor([3, 4, 5])], None, nsamples=1, seqlen=5, pack=True)
    assert tokens.input_ids.tolist() == [[1, 2, 3, 4, 5]]


def test_too_little_to_pack(tokenizer, words):
    message = (
        r"gives 3 samples of 12 tokens when packed, 4 are asked for: pass nsamples=3, a shorter seqlen or more text\."
    )
    with pytest.raises(CalibrationError, match=message):
        load_calibration([words(10)] * 3, tokenizer, nsamples=4, seqlen=12, pack=True)


def test_packing_an_endless_source_ends(tokenizer):
    assert len(load_calibration(itertools.cycle(["w1"]), tokenizer, nsamples=2, seqlen=64, pack=True)) == 2
    with pytest.raises(CalibrationError, match="gives no sample of 64 tokens when packed"):
        load_calibration(itertools.cycle([[]]), tokenizer, nsamples=2, seqlen=64, pack=True)


@given(st.lists(st.integers(1, 30), max_size=20), st.integers(1, 12), st.integers(1, 8))
def test_packing_loses_nothing_in_between(lengths, seqlen, nsamples):
    rows = [[index + 1] * length for index, length in enumerate(lengths)]
    flat = [token for row in rows for token in row]
    if len(flat) < nsamples * seqlen:
        with pytest.raises(CalibrationError, match="when packed"):
            load_calibration(rows, None, nsamples=nsamples, seqlen=seqlen, pack=True)
    else:
        tokens = load_calibration(rows, None, nsamples=nsamples, seqlen=seqlen, pack=True)
        assert tokens.input_ids.flatten().tolist() == flat[: nsamples * seqlen]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=30), st.integers(16, 30), st.integers(1, 10))
def test_chosen_texts_are_the_longest_where_long_ones_lack(lengths, seqlen, nsamples):
    def count(text, **options):
        return {"input_ids": [1] * len(text)}

    request = Request(count, nsamples, seqlen, "here")
    items = [("item", "x" * length) for length in lengths]
    cut = sorted((min(length, seqlen) for length in lengths if length >= 16), reverse=True)
    if len(cut) < nsamples:
        with pytest.raises(CalibrationError, match="at least 16 tokens"):
            select_samples(items, request)
    else:
        assert [len(sample) for sample in select_samples(items, request)] == cut[:nsamples]
