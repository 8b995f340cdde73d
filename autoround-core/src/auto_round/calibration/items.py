# SPDX-License-Identifier: Apache-2.0
"""What one item of a data set may be, and how it splits into texts and token samples.

| item | becomes |
|---|---|
| `str` | a text |
| int tensor or array [length]; list of int | a token sample |
| int tensor or array [batch, length]; list of such lists | `batch` token samples |
| mapping with `input_ids`, optionally `attention_mask` | token samples, without what the mask leaves out |
| mapping with `text`, one or a list | texts |
| `(ids, mask)`, two tensors of one shape, the mask bool | token samples, without what the mask leaves out |
| list of any of these | one after the other |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from numbers import Number
from typing import Any

import numpy as np
import torch

from auto_round.errors import CalibrationError

__all__ = ["Item", "Sample", "items_of", "samples_of"]

Sample = str | torch.Tensor
"""A text, or token ids int64 [length]."""

Item = tuple[str, Any]
"""Where an item is, in words for an error message, and the item."""

_Array = (torch.Tensor, np.ndarray)


def items_of(dataset: Any) -> Iterator[Item]:
    """Walk a Python object that holds calibration data; lazily, for it may be endless.

    Raises:
        CalibrationError: the object is nothing that can be walked.
    """
    if isinstance(dataset, Mapping) or _is_one_sample(dataset):
        yield "dataset", dataset
        return
    if isinstance(dataset, bytes | bytearray) or not (isinstance(dataset, Iterable) or hasattr(dataset, "__getitem__")):
        raise CalibrationError(
            f"dataset is of type {type(dataset).__name__}: pass a file name, a Hub data set id, a list of strings, "
            "token tensors or a DataLoader."
        )
    # `enumerate` also walks what has only `__getitem__`, such as a map-style torch data set.
    for index, item in enumerate(dataset):
        yield f"dataset[{index}]", item


def samples_of(items: Iterable[Item], limit: int) -> Iterator[Sample]:
    """Split the first `limit` items into samples, of which there are at most `limit`.

    Raises:
        CalibrationError: an item is none of the kinds in the table above; the message says which item.
    """
    return islice((sample for place, item in islice(items, limit) for sample in _split(place, item)), limit)


def _split(place: str, item: Any) -> Iterator[Sample]:
    if isinstance(item, str):
        yield item
    elif isinstance(item, Mapping):
        yield from _split_record(place, item)
    elif isinstance(item, _Array) or _is_one_sample(item):
        yield from _token_rows(place, item)
    elif isinstance(item, list | tuple):
        if _is_several_tensors(item):
            yield from _split_pair(place, item)
        else:
            for part in item:
                yield from _split(place, part)
    else:
        raise CalibrationError(
            f"{place} is of type {type(item).__name__}: items are texts, token ids, or records with text or input_ids."
        )


def _split_record(place: str, record: Mapping[Any, Any]) -> Iterator[Sample]:
    if "input_ids" in record:
        ids = _token_rows(place, record["input_ids"])
        mask = record.get("attention_mask")
        yield from ids if mask is None else _unmasked(place, ids, mask)
    elif "text" in record:
        texts = record["text"] if isinstance(record["text"], list | tuple) else [record["text"]]
        for text in texts:
            if not isinstance(text, str):
                raise CalibrationError(f'{place}: "text" holds {type(text).__name__}, not a string.')
            yield text
    else:
        has = ", ".join(map(str, record)) or "nothing"
        raise CalibrationError(f'{place} has no "text" field and no "input_ids" (it has: {has}).')


def _is_several_tensors(item: list[Any] | tuple[Any, ...]) -> bool:
    """What `DataLoader` makes of a `TensorDataset`: columns, not samples. A list of 1-D tensors is samples."""
    if len(item) < 2 or not all(isinstance(part, _Array) for part in item):
        return False
    return isinstance(item, tuple) or any(part.ndim > 1 for part in item)


def _split_pair(place: str, item: list[Any] | tuple[Any, ...]) -> Iterator[Sample]:
    if len(item) != 2 or item[1].dtype not in (torch.bool, np.dtype(bool)):
        raise CalibrationError(
            f"{place} is {len(item)} tensors and which of them holds token ids cannot be known: "
            "yield a dict with input_ids and attention_mask."
        )
    yield from _unmasked(place, _token_rows(place, item[0]), item[1])


def _unmasked(place: str, ids: list[torch.Tensor], mask: Any) -> Iterator[torch.Tensor]:
    masks = _token_rows(place, mask, what="attention_mask")
    if [len(row) for row in ids] != [len(row) for row in masks]:
        raise CalibrationError(f"{place}: attention_mask and input_ids are of different shapes.")
    for row, keep in zip(ids, masks, strict=True):
        yield row[keep.bool()]


def _token_rows(place: str, value: Any, what: str = "input_ids") -> list[torch.Tensor]:
    """One int64 tensor [length] per sample in `value`, which is [length] or [batch, length], even or ragged."""
    if isinstance(value, list | tuple) and value and not isinstance(value[0], Number):
        return [row for part in value for row in _token_rows(place, part, what)]
    if not isinstance(value, torch.Tensor | np.ndarray | list | tuple):
        raise CalibrationError(f"{place}: {what} is of type {type(value).__name__}, not token ids.")
    try:
        # `torch.tensor` copies: sharing memory with a read-only array, such as a memory map, warns.
        tensor = value.detach().cpu() if isinstance(value, torch.Tensor) else torch.tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CalibrationError(f"{place}: {what} is not a list of whole numbers.") from error
    if tensor.numel() == 0:
        return []
    if tensor.ndim not in (1, 2):
        raise CalibrationError(f"{place}: {what} has the shape {tuple(tensor.shape)}, not [length] or [batch, length].")
    if tensor.is_floating_point() or tensor.is_complex() or (tensor.dtype == torch.bool and what == "input_ids"):
        raise CalibrationError(f"{place}: {what} are {tensor.dtype}, not whole numbers.")
    tensor = tensor.to(torch.int64)
    if int(tensor.min()) < 0:
        raise CalibrationError(f"{place}: {what} holds {int(tensor.min())}, and no token has a negative id.")
    return list(tensor) if tensor.ndim == 2 else [tensor]


def _is_one_sample(value: Any) -> bool:
    if isinstance(value, _Array):
        return value.ndim < 2
    return isinstance(value, list | tuple) and len(value) > 0 and isinstance(value[0], Number)
