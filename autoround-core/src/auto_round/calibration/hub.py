# SPDX-License-Identifier: Apache-2.0
"""Calibration data from a data set on the Hub, read row by row, so that a huge one is never downloaded whole."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from auto_round.calibration.files import text_column
from auto_round.calibration.items import Item
from auto_round.errors import CalibrationError

__all__ = ["DEFAULT_DATASET", "HubDataset", "read_hub"]

DEFAULT_DATASET = "NeelNanda/pile-10k"


@dataclass(frozen=True)
class HubDataset:
    """A data set on the Hub, written `name`, or `name:split=test:config=en:column=content`.

    Attributes:
        name: its id, with or without an owner.
        split: which part of it.
        config: which of its configurations, for data sets that have several.
        column: the column that holds the text; by default `text`, or the only column of strings.
    """

    name: str
    split: str = "train"
    config: str | None = None
    column: str | None = None

    @classmethod
    def parse(cls, spec: str) -> HubDataset:
        """Read the written form.

        Raises:
            CalibrationError: the name is none the Hub could have, or an option is unknown or lacks a value.
        """
        name, *options = spec.strip().split(":")
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
            raise CalibrationError(
                f"{_shortened(spec)!r} is neither a file nor the id of a Hub data set: pass texts as a list of strings."
            )
        known = [field.name for field in fields(cls)[1:]]
        values = dict(option.partition("=")[::2] for option in options)
        for option, value in values.items():
            if option not in known or not value:
                raise CalibrationError(
                    f"{option!r} in {spec!r} is no option of a Hub data set: the options are {', '.join(known)}, "
                    f"written {name}:split=train."
                )
        return cls(name, **values)

    def __str__(self) -> str:
        """How to call it: name, configuration, split."""
        return " ".join(filter(None, (self.name, self.config, self.split)))


def read_hub(dataset: HubDataset) -> Iterator[Item]:
    """The rows of a Hub data set, streamed.

    Raises:
        CalibrationError: the `datasets` library is not installed, the Hub or the data set cannot be reached, or there
            is no such column; when the first row is asked for.
    """
    rows = _open(dataset)
    column = dataset.column
    number = 0
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:  # whatever transport and file format raise while streaming
            raise _unreadable(dataset, error) from error
        if number == 0 and column is None and "input_ids" not in row:
            strings = [name for name, value in row.items() if isinstance(value, str)]
            remedy = f": name one, as in {dataset.name}:column=NAME" if strings else ""
            column = text_column(f"data set {dataset}", strings, list(row), remedy)
        number += 1
        place = f"data set {dataset}, row {number}"
        yield place, row if column is None else {"text": _cell(place, row, column)}


def _cell(place: str, row: Mapping[str, Any], column: str) -> Any:
    if column not in row:
        raise CalibrationError(f"{place} has no column {column} (it has: {', '.join(row)}).")
    return row[column]


def _open(dataset: HubDataset) -> Iterator[Mapping[str, Any]]:
    try:
        library = importlib.import_module("datasets")
    except ImportError as error:
        raise CalibrationError(
            f'reading the data set {dataset.name} needs the datasets library: pip install "autoround-core[datasets]", '
            "or pass a file: --dataset FILE.txt."
        ) from error
    try:
        return iter(library.load_dataset(dataset.name, dataset.config, split=dataset.split, streaming=True))
    except Exception as error:  # the library raises some ten unrelated classes here, of several other libraries
        raise _unreadable(dataset, error) from error


def _unreadable(dataset: HubDataset, error: Exception) -> CalibrationError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return CalibrationError(
        f"data set {dataset} cannot be read from the Hub ({_shortened(reason, 200)}): check its name and the network, "
        "or pass a file instead: --dataset FILE.txt."
    )


def _shortened(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
