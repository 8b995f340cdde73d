# SPDX-License-Identifier: Apache-2.0
"""How far a model is from its original: perplexity, and Kullback-Leibler divergence of its predictions.

A text is tokenized once and cut into windows of 512 tokens. At each position but a window's last, both models predict
the next token. The divergence, sum(p * log(p / q)) of the original's p and the other's q in nats, sees any change of
the predictions; perplexity, exp(mean(-log q(next token))), sees only what it did to the token that came, and can
improve by luck.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

WINDOW = 512
MAX_TOKENS = 30_000
BATCH = 4


@dataclass(frozen=True)
class Quality:
    """Mean over all predictions, against the original."""

    perplexity: float
    divergence: float


class Measure:
    """An original and a text to judge other models by.

    Args:
        original: directory of the model that the others are compared with; it computes in float32.
        text: file of text; its first 30,000 tokens are used.
    """

    def __init__(self, original: Path, text: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(original)
        ids = tokenizer(text.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"][:MAX_TOKENS]
        whole = len(ids) // WINDOW * WINDOW
        self.windows = torch.tensor(ids[:whole]).view(-1, WINDOW)
        self.original = AutoModelForCausalLM.from_pretrained(original, dtype=torch.float32).eval()

    @torch.no_grad()
    def __call__(self, model: Any) -> Quality:
        """Judge a model, a module of transformers."""
        surprise = divergence = 0.0
        predictions = 0
        for batch in self.windows.split(BATCH):
            wanted, given = _log_probabilities(self.original, batch), _log_probabilities(model, batch)
            divergence += (wanted.exp() * (wanted - given)).sum().item()
            surprise -= given.gather(-1, batch[:, 1:, None]).sum().item()
            predictions += batch[:, 1:].numel()
        return Quality(math.exp(surprise / predictions), divergence / predictions)


def _log_probabilities(model: Any, batch: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
    return torch.log_softmax(logits.float(), dim=-1)


def load(directory: Path) -> Any:
    """A checkpoint as any user of transformers loads it."""
    return AutoModelForCausalLM.from_pretrained(directory, dtype="auto", device_map="cpu").eval()


def continuation(model: Any, directory: Path, prompt: str, tokens: int = 32) -> str:
    """What the model writes after a prompt, always the likeliest token."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    written = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=model.config.eos_token_id,
    )
    return str(tokenizer.decode(written[0], skip_special_tokens=True))


def bytes_on_disk(directory: Path) -> int:
    """Size of the safetensors files of a checkpoint."""
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def bytes_of_layers(original: Path, quantized: Path) -> tuple[int, int]:
    """Size of the layers that were quantized: in the original, and with all their scales in the other checkpoint."""
    before, after = dict(_tensor_sizes(original)), dict(_tensor_sizes(quantized))
    layers = tuple(
        name.removesuffix("weight") for name in before if name.endswith(".weight") and before[name] != after.get(name)
    )

    def total(sizes: dict[str, int]) -> int:
        return sum(size for name, size in sizes.items() if name.startswith(layers))

    return total(before), total(after)


def _tensor_sizes(directory: Path) -> Iterator[tuple[str, int]]:
    """Name and bytes of every tensor, from the files' headers."""
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        yield from ((name, entry["data_offsets"][1] - entry["data_offsets"][0]) for name, entry in header.items())
