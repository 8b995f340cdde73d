# SPDX-License-Identifier: Apache-2.0
"""Data sets on the Hub, without the Hub: what is asked of the library, and what is made of its answers."""

import importlib
import itertools

import pytest

from auto_round.calibration import load_calibration
from auto_round.calibration.hub import HubDataset
from auto_round.errors import CalibrationError

datasets = pytest.importorskip("datasets")


@pytest.fixture
def hub(monkeypatch):
    """Answers every request with the rows put into it, and remembers the requests."""

    class Hub:
        rows = ()
        requests = ()

        def load_dataset(self, *args, **options):
            self.requests = (*self.requests, (args, options))
            return self.rows

    hub = Hub()
    monkeypatch.setattr(datasets, "load_dataset", hub.load_dataset)
    return hub


def load(dataset, tokenizer, nsamples=2, seqlen=16, **options):
    return load_calibration(dataset, tokenizer, nsamples=nsamples, seqlen=seqlen, **options)


def test_the_default_is_streamed_and_only_begun(hub, tokenizer, words):
    read = itertools.count()
    hub.rows = ({"text": words(20, next(read)), "meta": {}} for _ in itertools.count())
    tokens = load(None, tokenizer)
    assert hub.requests == ((("NeelNanda/pile-10k", None), {"split": "train", "streaming": True}),)
    assert next(read) == 2
    assert tokens.input_ids.shape == (2, 16)
    assert tokens.source == "NeelNanda/pile-10k train: 2 samples of at most 16 tokens"


def test_every_option(hub, tokenizer, words):
    hub.rows = [{"id": "a", "body": words(20)}] * 2
    tokens = load("someone/some-set:split=test:config=en:column=body", tokenizer)
    assert hub.requests == ((("someone/some-set", "en"), {"split": "test", "streaming": True}),)
    assert tokens.source.startswith("someone/some-set en test: ")


def test_the_only_column_of_strings_is_the_text(hub, tokenizer, words):
    hub.rows = [{"id": 1, "content": words(20)}] * 2
    assert len(load("some-set", tokenizer)) == 2


def test_a_data_set_of_tokens(hub):
    hub.rows = [{"input_ids": [1, 2, 3], "note": "x"}, {"input_ids": [4], "note": "x"}]
    assert load("some-set", None).input_ids.tolist() == [[1, 2, 3], [4, 0, 0]]


def test_several_data_sets_divide_the_samples(hub, tokenizer, words):
    hub.rows = [{"text": words(20)}] * 2
    assert load("one,two/three:split=test", tokenizer, nsamples=3).source == (
        "one train: 2 samples of at most 16 tokens; two/three test: 1 sample of at most 16 tokens"
    )
    assert [args[0] for args, _ in hub.requests] == ["one", "two/three"]


@pytest.mark.parametrize(
    ("spec", "rows", "message"),
    [
        ("a", [{"q": "x", "a": "y"}], r"several columns .*\(it has: q, a\): name one, as in a:column=NAME\."),
        ("a", [{"n": 1}], r"data set a train has no column of strings \(it has: n\)\."),
        ("a:column=b", [{"q": "x"}], r"row 1 has no column b \(it has: q\)"),
        ("a", [{"text": "w"}, {"text": None}], r'data set a train, row 2: "text" holds NoneType'),
        ("a", [], r"\(a train\) gives no sample, 2 are asked for"),
        (
            "a:num=5",
            [],
            "'num' in 'a:num=5' is no option .*: the options are split, config, column, written a:split=train",
        ),
        ("a:split", [], "'split' in 'a:split' is no option"),
        ("a/b/c", [], "'a/b/c' is neither a file nor the id of a Hub data set"),
        ("", [], "neither a file nor the id"),
        ("Once upon a time, there was a model.", [], "pass texts as a list of strings"),
        (
            "A text that was passed by mistake. " * 500,
            [],
            "…' is neither",
        ),
        ("null\0byte", [], "neither a file nor the id"),
    ],
)
def test_what_cannot_be_used(hub, tokenizer, spec, rows, message):
    hub.rows = rows
    with pytest.raises(CalibrationError, match=message) as error:
        load(spec, tokenizer)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("dataset", [None, "someone/some-set"])
def test_unreachable(tokenizer, monkeypatch, dataset):
    monkeypatch.setattr(importlib.import_module("datasets.config"), "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(importlib.import_module("huggingface_hub.constants"), "HF_HUB_OFFLINE", True)
    with pytest.raises(
        CalibrationError, match=r"cannot be read from the Hub \(.+\): .* --dataset FILE\.txt\."
    ) as error:
        load(dataset, tokenizer)
    assert (dataset or "NeelNanda/pile-10k") in str(error.value)
    assert "\n" not in str(error.value)


def test_an_error_while_streaming(hub, tokenizer, words):
    def rows():
        yield {"text": words(20)}
        raise ConnectionResetError("peer went away\nand more")

    hub.rows = rows()
    with pytest.raises(CalibrationError, match=r"\(peer went away\): check its name and the network"):
        load("some-set", tokenizer)


def test_without_the_library(tokenizer, monkeypatch):
    monkeypatch.setitem(importlib.sys.modules, "datasets", None)
    with pytest.raises(
        CalibrationError, match=r'pip install "autoround-core\[datasets\]", or pass a file: --dataset FILE'
    ):
        load("some-set", tokenizer)


def test_a_name_that_is_a_file_here_is_the_file(hub, tokenizer, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus.txt").write_text(words(100))
    assert load("corpus.txt", tokenizer).source.startswith("corpus.txt: 2 equal pieces")
    assert hub.requests == ()


def test_written_form():
    assert HubDataset.parse("a/b:column=c") == HubDataset("a/b", column="c")
    assert str(HubDataset.parse("a/b:config=d")) == "a/b d train"
