# SPDX-License-Identifier: Apache-2.0
"""Calibration data from a file.

| suffix | content |
|---|---|
| `.txt`, `.md` | one long document, UTF-8 |
| `.jsonl` | one JSON value a line: a string, or an object with `text` or `input_ids` |
| `.json` | a list of such values, an object that holds one list of them, or lines as in `.jsonl` |
| `.parquet` | texts from the column `text`, or from the only column of strings |
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from auto_round.calibration.items import Item
from auto_round.errors import CalibrationError

__all__ = ["looks_like_file", "read_file", "text_column"]


def looks_like_file(name: str) -> bool:
    """Whether a name that does not exist was meant as a file rather than as a Hub data set."""
    return Path(name).is_absolute() or name.startswith((".", "~")) or Path(name).suffix.lower() in _READERS


def read_file(path: Path) -> str | Iterator[Item]:
    """A document as one string, or the items of a file of records, read as they are asked for.

    Raises:
        CalibrationError: no such file, an unknown suffix, an empty file, bytes that are not UTF-8, broken JSON, no
            column of text; at once, or when the items are read.
    """
    if not path.exists():
        raise CalibrationError(f"no such file: {path}.")
    if path.is_dir():
        raise CalibrationError(f"{path} is a directory: pass one file.")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        kinds = ", ".join(_READERS)
        raise CalibrationError(f"{path} is of no kind that can be read: calibration files are {kinds}.")
    try:
        if path.stat().st_size == 0:
            raise CalibrationError(f"{path} is empty.")
        return reader(path)
    except OSError as error:
        raise _unreadable(path, error) from error


def text_column(source: str, strings: Sequence[str], columns: Sequence[str], remedy: str = "") -> str:
    """Choose the column of text in a table: `text`, or the only column of strings.

    Args:
        source: what to call the table in an error.
        strings: names of the columns that hold strings.
        columns: names of all columns.
        remedy: the end of the error's sentence.

    Raises:
        CalibrationError: there is no such column, or several.
    """
    if "text" in strings:
        return "text"
    if len(strings) != 1:
        has = ", ".join(columns) or "nothing"
        several = "several columns of strings, none of them called text" if strings else "no column of strings"
        raise CalibrationError(f"{source} has {several} (it has: {has}){remedy}.")
    return strings[0]


def _read_document(path: Path) -> str:
    text = _decode(path, path.read_bytes()).replace("\r\n", "\n")
    if not text.strip():
        raise CalibrationError(f"{path} holds nothing but white space.")
    return text


def _read_json(path: Path) -> Iterator[Item]:
    text = _decode(path, path.read_bytes())
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # JSON lines under the name of JSON are common
            return _read_jsonl(path)
        raise CalibrationError(f"{path}, line {error.lineno}: not JSON ({error.msg}).") from error
    if isinstance(value, dict):
        lists = [entry for entry in value.values() if isinstance(entry, list)]
        if len(lists) != 1:
            raise CalibrationError(
                f"{path} holds an object with {len(lists)} lists in it, where one list of texts is expected."
            )
        value = lists[0]
    if not isinstance(value, list):
        raise CalibrationError(f"{path} holds a single {type(value).__name__}, not a list of texts.")
    return ((f"{path}, entry {number}", entry) for number, entry in enumerate(value, 1))


def _read_jsonl(path: Path) -> Iterator[Item]:
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                text = _decode(path, line, line=number)
                if text.strip():
                    yield f"{path}, line {number}", _parsed(text, f"{path}, line {number}")
    except OSError as error:
        raise _unreadable(path, error) from error


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise CalibrationError(f"{place}: not JSON ({error.msg}).") from error


def _read_parquet(path: Path) -> Iterator[Item]:
    try:
        arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise CalibrationError(f'reading {path} needs pyarrow: pip install "autoround-core[datasets]".') from error
    try:
        table = parquet.ParquetFile(path)
    except (OSError, ValueError) as error:  # pyarrow's own errors are kinds of these
        raise CalibrationError(f"{path} is not a readable parquet file ({_first_line(error)}).") from error
    schema = table.schema_arrow
    column = text_column(str(path), [f.name for f in schema if _holds_strings(arrow.types, f.type)], schema.names)
    return _parquet_rows(path, table, column)


def _parquet_rows(path: Path, table: Any, column: str) -> Iterator[Item]:
    number = 0
    try:
        for batch in table.iter_batches(batch_size=256, columns=[column]):
            for text in batch.column(0).to_pylist():
                number += 1
                yield f"{path}, row {number}", {"text": text}
    except (OSError, ValueError) as error:
        raise CalibrationError(f"{path} breaks off after row {number} ({_first_line(error)}).") from error


def _holds_strings(types: Any, kind: Any) -> bool:
    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _decode(path: Path, raw: bytes, line: int = 1) -> str:
    try:
        return raw.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line += error.object[: error.start].count(b"\n")
        raise CalibrationError(f"{path}, line {line}: not UTF-8 text.") from error


def _unreadable(path: Path, error: OSError) -> CalibrationError:
    return CalibrationError(f"{path} cannot be read: {error.strerror or error}.")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


_READERS: dict[str, Callable[[Path], str | Iterator[Item]]] = {
    ".txt": _read_document,
    ".md": _read_document,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
