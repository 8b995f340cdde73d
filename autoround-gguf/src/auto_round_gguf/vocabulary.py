# SPDX-License-Identifier: Apache-2.0
"""The vocabulary of a tokenizer as llama.cpp reads it.

Two kinds are known: byte-level BPE (`gpt2`) and BPE over SentencePiece pieces with bytes to fall back on (`llama`).
Text is split before BPE by rules that llama.cpp knows by name and not by pattern; `PATTERNS` has those it shares with
published tokenizers. Any other byte-level tokenizer is written under the name of GPT-2's rule, and said so.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass, field
from typing import Any

import gguf

from auto_round.errors import PlanError

__all__ = ["Vocabulary", "read_vocabulary", "write_vocabulary"]

logger = logging.getLogger(__name__)

_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"

PATTERNS = {
    f"{_CONTRACTIONS}|{_WORDS}" + r"\p{N}{1,3}" + _REST: "llama-bpe",
    f"{_CONTRACTIONS}|{_WORDS}" + r"\p{N}" + _REST: "qwen2",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    + _CASED_REST: "tekken",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    rf"{_CONTRACTIONS}?|\p{{N}}{{1,3}}" + _CASED_REST: "gpt-4o",
}
"""Patterns of published tokenizers, and the names llama.cpp has for them."""

DEFAULT_PRE = "gpt-2"

BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass
class Vocabulary:
    """What a file says of a tokenizer.

    Attributes:
        model: `gpt2`, `llama`, or `none` where there is no tokenizer.
        pre: name of the rule that splits text before BPE.
        tokens, types: by id; as many as the embedding has rows.
        scores: of SentencePiece pieces, the higher the earlier they are joined.
        merges: pairs joined by byte-level BPE, the first first.
        special: ids of `bos`, `eos`, `unk`, `pad`.
        flags: `add_bos`, `add_eos`, `add_space_prefix`.
        chat_template: Jinja, or None.
    """

    model: str
    pre: str = ""
    tokens: list[str] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    special: dict[str, int] = field(default_factory=dict)
    flags: dict[str, bool] = field(default_factory=dict)
    chat_template: str | None = None


def read_vocabulary(tokenizer: Any, rows: int) -> Vocabulary:
    """The vocabulary of a transformers tokenizer, filled up to `rows` ids.

    Raises:
        PlanError: a tokenizer llama.cpp has no counterpart for.
    """
    if tokenizer is None:
        return Vocabulary("none")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise PlanError([f"format gguf reads tokenizers from tokenizer.json, and {type(tokenizer).__name__} has none."])
    described = json.loads(backend.to_str())
    model = described["model"]
    if model["type"] != "BPE":
        raise PlanError([f"format gguf writes BPE tokenizers; this one is {model['type']}."])
    pieces = model.get("byte_fallback", False)
    found = Vocabulary("llama" if pieces else "gpt2")
    found.tokens, found.types = _tokens(described, rows, pieces=pieces)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    if pieces:
        found.pre = "default"
        found.scores = _scores(found.tokens, [tuple(m.split(" ", 1)) for m in merges])
        found.flags["add_space_prefix"] = _adds_space(described)
    else:
        found.pre, found.merges = _pre(described), merges
    found.special = _special(tokenizer, len(found.tokens))
    found.flags |= _ends(tokenizer)
    template = getattr(tokenizer, "chat_template", None)
    found.chat_template = template if isinstance(template, str) else None
    return found


def write_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    """Write everything below `tokenizer.`"""
    writer.add_tokenizer_model(vocabulary.model)
    if vocabulary.model == "none":
        return
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    for name, number in vocabulary.special.items():
        getattr(writer, f"add_{name}_token_id")(number)
    for name, value in vocabulary.flags.items():
        getattr(writer, f"add_{name}" if name == "add_space_prefix" else f"add_{name}_token")(value)
    if vocabulary.chat_template is not None:
        writer.add_chat_template(vocabulary.chat_template)


def _tokens(described: dict[str, Any], rows: int, *, pieces: bool) -> tuple[list[str], list[int]]:
    vocab, added = described["model"]["vocab"], {t["id"]: t for t in described.get("added_tokens") or []}
    by_id = {number: token for token, number in vocab.items()}
    unknown = described["model"].get("unk_token")
    size = max((*by_id, *added), default=-1) + 1
    if size > rows:
        raise PlanError([f"the tokenizer has {size} tokens and the embedding only {rows} rows."])
    tokens, types = [], []
    for number in range(rows):
        token, kind = by_id.get(number), gguf.TokenType.NORMAL
        if number in added:
            token = added[number]["content"]
            kind = gguf.TokenType.CONTROL if added[number]["special"] else gguf.TokenType.USER_DEFINED
        elif token is None:
            token, kind = f"[PAD{number}]", gguf.TokenType.UNUSED
        if pieces and token == unknown:
            kind = gguf.TokenType.UNKNOWN
        elif pieces and BYTE.fullmatch(token):
            kind = gguf.TokenType.BYTE
        tokens.append(token)
        types.append(int(kind))
    return tokens, types


def _scores(tokens: list[str], merges: list[tuple[str, ...]]) -> list[float]:
    """The earlier a piece is joined, the higher its score; pieces that no pair makes come last."""
    rank: dict[str, int] = {}
    for number, pair in enumerate(merges):
        rank.setdefault("".join(pair), number)
    return [-float(rank.get(token, len(merges))) for token in tokens]


def _parts(step: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    if not step:
        return []
    return step[inner] if step["type"] == "Sequence" else [step]


def _adds_space(described: dict[str, Any]) -> bool:
    if any(p["type"] == "Prepend" for p in _parts(described.get("normalizer"), "normalizers")):
        return True
    spaces = [p for p in _parts(described.get("pre_tokenizer"), "pretokenizers") if p["type"] == "Metaspace"]
    return any(p.get("prepend_scheme", "always") != "never" and p.get("add_prefix_space", True) for p in spaces)


def _pre(described: dict[str, Any]) -> str:
    parts = _parts(described.get("pre_tokenizer"), "pretokenizers")
    for part in parts:
        pattern = part.get("pattern", {}).get("Regex") if part["type"] == "Split" else None
        if pattern in PATTERNS:
            return PATTERNS[pattern]
    if any(p["type"] == "Digits" for p in parts) and any(p["type"] == "ByteLevel" for p in parts):
        return "smollm" if any(p.get("individual_digits") for p in parts) else DEFAULT_PRE
    if not (len(parts) == 1 and parts[0]["type"] == "ByteLevel" and parts[0].get("use_regex", True)):
        logger.warning(
            "llama.cpp has no name known here for how this tokenizer splits text; it is written as %s, under which "
            "some texts may become other tokens.",
            DEFAULT_PRE,
        )
    return DEFAULT_PRE


def _special(tokenizer: Any, count: int) -> dict[str, int]:
    numbers = {name: getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "unk", "pad")}
    return {name: number for name, number in numbers.items() if isinstance(number, int) and number < count}


def _ends(tokenizer: Any) -> dict[str, bool]:
    """Whether encoding puts a token before and after a text, seen by doing it."""
    with_ends, without = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    return {
        "add_bos": bos is not None and with_ends[:1] == [bos] and without[:1] != [bos],
        "add_eos": eos is not None and with_ends[-1:] == [eos] and without[-1:] != [eos],
    }
