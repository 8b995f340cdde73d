# SPDX-License-Identifier: Apache-2.0
"""Tokenizers: what is written of them, and that llama.cpp splits text as they do."""

import logging

import pytest
import torch
from gguf import TokenType
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from auto_round import AutoRound
from auto_round.errors import PlanError
from auto_round_gguf.vocabulary import PATTERNS, read_vocabulary

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def test_byte_level_tokens_types_and_merges(byte_level):
    tokenizer = byte_level()
    found = read_vocabulary(tokenizer, 300)
    assert (found.model, found.pre) == ("gpt2", "gpt-2")
    assert len(found.tokens) == len(found.types) == 300
    assert found.merges == ["t h", "th e"]
    assert found.tokens[tokenizer.pad_token_id] == "<pad>"
    assert found.types[1] == TokenType.CONTROL
    assert found.types[5] == TokenType.NORMAL
    assert found.tokens[299] == "[PAD299]"
    assert found.types[299] == TokenType.UNUSED
    assert found.special == {"bos": 1, "eos": 2, "unk": 0, "pad": tokenizer.pad_token_id}
    assert found.flags == {"add_bos": False, "add_eos": False}


@pytest.mark.parametrize(("pattern", "name"), [(LLAMA3, "llama-bpe"), (QWEN2, "qwen2")])
def test_known_patterns_have_their_names(byte_level, pattern, name, caplog):
    assert read_vocabulary(byte_level(pattern), 300).pre == name
    assert not caplog.records


def test_every_known_pattern_is_a_pattern():
    for pattern in PATTERNS:
        Regex(pattern)


def test_a_pattern_nobody_knows_is_said_so(byte_level, caplog):
    with caplog.at_level(logging.WARNING):
        assert read_vocabulary(byte_level(r"\d|\D+"), 300).pre == "gpt-2"
    assert "no name known here" in caplog.text
    assert read_vocabulary(byte_level(extra=[pre_tokenizers.Digits(individual_digits=True)]), 300).pre == "smollm"


def pieces(prefix):
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "b", "ab", "▁ab"]
    vocab = {token: i for i, token in enumerate(tokens)}
    merges = [("a", "b"), ("▁", "ab")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True))
    steps = [normalizers.Prepend("▁")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("prefix", [True, False])
def test_pieces_have_scores_in_the_order_they_are_joined(prefix):
    found = read_vocabulary(pieces(prefix), 264)
    assert found.model == "llama"
    assert found.flags["add_space_prefix"] is prefix
    score = dict(zip(found.tokens, found.scores, strict=True))
    assert score["ab"] > score["▁ab"] > score["a"]
    assert found.types[0] == TokenType.UNKNOWN
    assert found.types[3] == TokenType.BYTE


def test_what_cannot_be_written_is_refused(byte_level):
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(PlanError, match="writes BPE tokenizers; this one is WordLevel"):
        read_vocabulary(words, 10)
    with pytest.raises(PlanError, match="the embedding only 10 rows"):
        read_vocabulary(byte_level(), 10)
    with pytest.raises(PlanError, match="has none"):
        read_vocabulary(object(), 10)
    assert read_vocabulary(None, 10).model == "none"


TEXTS = [
    "the other theatre, the THE  the",
    "it's 1234567 o'clock\n\n  and 3.14159!",
    "def f(x):\n\treturn [x**2]  # naïve … 東京 🙂\n   ",
    "a ab  ba abab b a",
]


@pytest.fixture
def split_by_llama_cpp(tmp_path, llama_cpp):
    def tokens(tokenizer, texts):
        config = LlamaConfig(
            vocab_size=300, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
        )
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        job = AutoRound(
            model, tokenizer, scheme="GGUF:Q8_0", dataset=torch.zeros(4, 8, dtype=torch.long), iters=0, verbose=False
        )
        job.quantize_and_save(tmp_path / "out", format="gguf")
        llama = llama_cpp(next((tmp_path / "out").iterdir()))
        return [llama.tokens(text) for text in texts]

    return tokens


@pytest.mark.parametrize("which", ["gpt-2", "llama-bpe", "qwen2", "smollm", "pieces", "pieces, no space"])
def test_llama_cpp_splits_text_as_the_tokenizer_does(split_by_llama_cpp, byte_level, which):
    tokenizer = {
        "gpt-2": byte_level,
        "llama-bpe": lambda: byte_level(LLAMA3),
        "qwen2": lambda: byte_level(QWEN2),
        "smollm": lambda: byte_level(extra=[pre_tokenizers.Digits(individual_digits=True)]),
        "pieces": lambda: pieces(prefix=True),
        "pieces, no space": lambda: pieces(prefix=False),
    }[which]()
    wanted = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert split_by_llama_cpp(tokenizer, TEXTS) == wanted
