# SPDX-License-Identifier: Apache-2.0
"""From whatever a user passes as `dataset` to calibration tokens."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from auto_round.calibration.files import looks_like_file, read_file
from auto_round.calibration.hub import DEFAULT_DATASET, HubDataset, read_hub
from auto_round.calibration.items import Item, items_of
from auto_round.calibration.samples import Request, cut_document, pack_samples, select_samples
from auto_round.calibration.tokens import CalibrationTokens
from auto_round.errors import CalibrationError

__all__ = ["load_calibration"]


@dataclass(frozen=True)
class _Source:
    """One place calibration data comes from: what to call it, and a document or items."""

    name: str
    content: str | Iterator[Item]


def load_calibration(
    dataset: Any, tokenizer: Callable[..., Any] | None, *, nsamples: int, seqlen: int, pack: bool = False
) -> CalibrationTokens:
    """Make `nsamples` samples of at most `seqlen` tokens. Nothing is random: the same data gives the same samples.

    Args:
        dataset: one of
            None: the data set `NeelNanda/pile-10k` on the Hub;
            the name of a file: `.txt`, `.md`, `.json`, `.jsonl` or `.parquet`, see `calibration.files`;
            the id of a Hub data set, also `name:split=train:config=en:column=content`, see `HubDataset`;
            several names joined by commas, which divide the samples evenly between them;
            a list of texts, of token lists, of tensors or of records; int tensors [n, length]; a DataLoader or any
            iterable that yields these or batches of them, endless or not, see `calibration.items`.
        tokenizer: a transformers tokenizer; None is enough for data that is token ids.
        nsamples: how many samples. No more is read than they need.
        seqlen: how long a sample is at most; shorter ones are padded on the right to the longest that there is.
        pack: join short texts, with the end-of-text token between, and cut full samples from that. A document is one
            text, and stays as it is.

    Returns:
        ids int64 and mask bool, both [nsamples, at most seqlen]. Padding has the tokenizer's padding token, else its
        end-of-text token, else 0.

    Raises:
        CalibrationError: the data cannot be found, read or understood, or is too little; text without tokenizer;
            nsamples or seqlen is less than 1.
    """
    for name, value in (("nsamples", nsamples), ("seqlen", seqlen)):
        if value < 1:
            raise CalibrationError(f"{name} is {value}: it must be at least 1.")
    sources = _sources(dataset)
    samples, told = [], []
    for index, source in enumerate(sources):
        part = nsamples // len(sources) + (index < nsamples % len(sources))
        if part == 0:
            continue
        request = Request(tokenizer, part, seqlen, source.name, share=len(sources))
        if isinstance(source.content, str):
            samples += cut_document(source.content, request)
            told.append(f"{source.name}: {part} equal pieces, the first {seqlen} tokens of each")
        elif pack:
            samples += pack_samples(source.content, request)
            told.append(f"{source.name}: {part} packed window{'s' * (part > 1)} of {seqlen} tokens")
        else:
            samples += select_samples(source.content, request)
            told.append(f"{source.name}: {part} sample{'s' * (part > 1)} of at most {seqlen} tokens")
    return CalibrationTokens.from_samples(samples, pad_id=_pad_id(tokenizer), source="; ".join(told))


def _sources(dataset: Any) -> list[_Source]:
    if dataset is None:
        return [_named(DEFAULT_DATASET)]
    if isinstance(dataset, os.PathLike):
        path = Path(dataset)
        return [_Source(str(path), read_file(path))]
    if isinstance(dataset, str):
        # A file may have a comma in its name.
        names = [dataset] if _exists(dataset) else [name.strip() for name in dataset.split(",")]
        return [_named(name) for name in names]
    return [_Source(type(dataset).__name__, items_of(dataset))]


def _named(name: str) -> _Source:
    if _exists(name) or looks_like_file(name) or looks_like_file(name.partition(":")[0]):
        return _Source(name, read_file(Path(name)))
    hub = HubDataset.parse(name)
    return _Source(str(hub), read_hub(hub))


def _exists(name: str) -> bool:
    try:
        return bool(name) and Path(name).exists()
    except (OSError, ValueError):  # a text passed by mistake may be longer than a name can be, or hold a null byte
        return False


def _pad_id(tokenizer: Callable[..., Any] | None) -> int:
    for name in ("pad_token_id", "eos_token_id"):
        token = getattr(tokenizer, name, None)
        if token is not None:
            return int(token)
    return 0
