# SPDX-License-Identifier: Apache-2.0
"""From texts to samples of at most `seqlen` tokens.

| data | samples |
|---|---|
| a document | it is cut into `nsamples` equal pieces by characters; the first `seqlen` tokens of each |
| texts | the first that have `seqlen` tokens, cut there; where they are too few, the longest of the others |
| token samples | the first ones, cut to `seqlen` |
| packed | everything joined, with the end-of-text token between, and cut into windows of `seqlen` |

A text of its own gets the special tokens that its tokenizer gives by default, as a transformers user expects (a Llama
tokenizer puts the begin-of-text token first). A piece of a document starts in the middle of it, so it gets none.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from auto_round.calibration.items import Item, Sample, samples_of
from auto_round.errors import CalibrationError

__all__ = ["MIN_TOKENS", "Request", "cut_document", "pack_samples", "select_samples"]

# A shorter text is all beginning: its few tokens see next to no context, and what is tuned on them is not how the
# model is used. Tokens that a caller passes are taken as they are; who makes them knows what is in them.
MIN_TOKENS = 16

# How far to look for texts that are long enough. A tenth of natural text has 2048 tokens, so a hundred per sample
# finds them, and an endless source ends.
_READ_PER_SAMPLE = 100
_READ_AT_LEAST = 1000

# No language needs more characters for a token on average; if one piece of text does, it is read on.
_CHARACTERS_PER_TOKEN = 32


@dataclass(frozen=True)
class Request:
    """What is asked of one source.

    Attributes:
        tokenizer: a transformers tokenizer, or None where the data is token ids.
        nsamples: number of samples, at least 1.
        seqlen: tokens in a sample, at least 1.
        source: what to call the source in an error.
        share: how many sources divide the samples between them, so that an error can name the total to ask for.
    """

    tokenizer: Callable[..., Any] | None
    nsamples: int
    seqlen: int
    source: str
    share: int = 1

    @property
    def most_items(self) -> int:
        """How many items are read at most in search of samples."""
        return max(_READ_AT_LEAST, _READ_PER_SAMPLE * self.nsamples)

    def too_little(self, found: int, kind: str, remedies: Sequence[str]) -> CalibrationError:
        """The error for a source that gives `found` samples, with every way out."""
        gives = f"{found} {'sample' if found == 1 else 'samples'}{kind}" if found else f"no sample{kind}"
        ways = [f"nsamples={found * self.share}", *remedies] if found else remedies
        return CalibrationError(
            f"the calibration data ({self.source}) gives {gives}, {self.nsamples} are asked for: pass {_either(ways)}."
        )


def cut_document(text: str, request: Request) -> list[torch.Tensor]:
    """The first `seqlen` tokens of each of `nsamples` equal pieces, int64 [seqlen] each.

    Piece i is `text[i * len(text) // nsamples : (i + 1) * len(text) // nsamples]`: the samples lie spread over the
    document, and every reader of this sentence gets the same ones.

    Raises:
        CalibrationError: a piece has fewer than `seqlen` tokens, or there is no tokenizer.
    """
    pieces = _cut(text, request, request.nsamples)
    shortest = min(map(len, pieces))
    if shortest == request.seqlen:
        return pieces
    ways = ["more text"]
    # Fewer pieces are longer ones, but words do not fall evenly: try until every piece is long enough.
    count = sum(map(len, pieces)) // request.seqlen
    while count and min(map(len, _cut(text, request, count))) < request.seqlen:
        count = count * 4 // 5
    if count:
        ways.insert(0, f"nsamples={count * request.share}")
    if shortest >= MIN_TOKENS:
        ways.insert(0, f"seqlen={shortest}")
    raise CalibrationError(
        f"the calibration data ({request.source}), cut into {request.nsamples} pieces, gives {shortest} tokens in the "
        f"shortest piece, {request.seqlen} are asked for: pass {_either(ways)}."
    )


def select_samples(items: Iterable[Item], request: Request) -> list[torch.Tensor]:
    """`nsamples` samples, int64 [up to seqlen] each: tokens as they come, texts preferably of full length.

    Texts are tokenized one by one until there are enough, and no more are read than `most_items`.

    Raises:
        CalibrationError: too few samples, an item that is no sample, or texts without a tokenizer.
    """
    chosen: list[torch.Tensor] = []
    short: list[tuple[int, int, torch.Tensor]] = []
    enough = min(MIN_TOKENS, request.seqlen)
    texts = False
    for index, sample in enumerate(samples_of(items, request.most_items)):
        ids = _tokens(sample, request.tokenizer, request.seqlen)
        texts = texts or isinstance(sample, str)
        if len(ids) == request.seqlen or (len(ids) and not isinstance(sample, str)):
            chosen.append(ids)
            if len(chosen) == request.nsamples:
                return chosen
        elif len(ids) >= enough:
            heapq.heappush(short, (len(ids), -index, ids))
            if len(short) > request.nsamples:
                heapq.heappop(short)
    chosen += [ids for _, _, ids in sorted(short, reverse=True)]
    if len(chosen) < request.nsamples:
        kind = f" of at least {enough} tokens" if texts else ""
        raise request.too_little(len(chosen), kind, ["more text" if texts else "more data"])
    return chosen[: request.nsamples]


def pack_samples(items: Iterable[Item], request: Request) -> list[torch.Tensor]:
    """`nsamples` windows, int64 [seqlen] each, cut from all samples joined by the end-of-text token.

    Raises:
        CalibrationError: too few windows, an item that is no sample, or texts without a tokenizer.
    """
    windows: list[torch.Tensor] = []
    eos = getattr(request.tokenizer, "eos_token_id", None)
    # Windows are filled from any number of short texts, so what is bounded is the rest: `seqlen` texts of one token
    # fill a window.
    limit = max(request.most_items, request.nsamples * request.seqlen)
    rest = torch.empty(0, dtype=torch.int64)
    for sample in samples_of(items, limit):
        ids = _tokens(sample, request.tokenizer, (request.nsamples - len(windows)) * request.seqlen)
        if len(ids) and eos is not None and ids[-1] != eos:
            ids = torch.cat([ids, torch.tensor([eos])])
        joined = torch.cat([rest, ids])
        full = len(joined) // request.seqlen
        windows += joined[: full * request.seqlen].reshape(full, request.seqlen)
        rest = joined[full * request.seqlen :]
        if len(windows) >= request.nsamples:
            return windows[: request.nsamples]
    kind = f" of {request.seqlen} tokens when packed"
    raise request.too_little(len(windows), kind, ["a shorter seqlen", "more text"])


def _either(ways: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(ways[:-1]), ways[-1])))


def _cut(text: str, request: Request, count: int) -> list[torch.Tensor]:
    ends = [i * len(text) // count for i in range(count + 1)]
    pieces = (text[start:end] for start, end in pairwise(ends))
    return [_tokens(piece, request.tokenizer, request.seqlen, add_special_tokens=False) for piece in pieces]


def _tokens(sample: Sample, tokenizer: Callable[..., Any] | None, limit: int, **options: bool) -> torch.Tensor:
    """The first `limit` tokens of a sample, int64."""
    if isinstance(sample, torch.Tensor):
        return sample[:limit]
    if tokenizer is None:
        raise CalibrationError("the calibration data is text: pass a tokenizer with it, or pass tokens.")
    size = limit * _CHARACTERS_PER_TOKEN
    while True:
        # Not the whole of a long text, of which only the beginning is kept; and cut here rather than by the tokenizer,
        # which may be set to keep the end. Twice the limit keeps clear of the place where the text was cut.
        # Half a surrogate pair, which JSON can hold, is no text to a tokenizer: it becomes a question mark.
        head = sample[:size].encode(errors="replace").decode()
        ids = tokenizer(head, verbose=False, **options)["input_ids"]
        if size >= len(sample) or len(ids) >= 2 * limit:
            return torch.tensor(ids[:limit], dtype=torch.int64)
        size *= 4
