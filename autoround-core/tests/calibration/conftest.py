# SPDX-License-Identifier: Apache-2.0
"""A real tokenizer of 104 words, made in memory: w0 ... w99 are tokens 4 ... 103, and every text starts with <s>."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]


@pytest.fixture(scope="session")
def tokenizer():
    words = {word: index for index, word in enumerate([*SPECIAL, *(f"w{n}" for n in range(100))])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture(scope="session")
def words():
    """A text of `count` words that starts at word `first`, so that texts can be told apart."""

    def make(count, first=0):
        return " ".join(f"w{(first + n) % 100}" for n in range(count))

    return make
