# SPDX-License-Identifier: Apache-2.0
"""From what the user wrote, a directory or a hub id, to a directory whose weights are known to be whole."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from auto_round.errors import ModelError

__all__ = ["StoredTensor", "locate", "read_headers"]

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


@dataclass(frozen=True)
class StoredTensor:
    """What a safetensors header says of one tensor."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        count = self.dtype.itemsize
        for n in self.shape:
            count *= n
        return count


def locate(model: str | os.PathLike[str], revision: str | None = None) -> Path:
    """The local directory of a model: the one named, or a snapshot of a hub repository.

    Raises:
        ModelError: neither exists or can be reached, or the directory holds no model.
    """
    path = Path(model)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{path} holds no config.json, so it is not a model directory.")
        return path
    text = os.fspath(model)
    if path.exists():
        raise ModelError(f"{path} is a file; name the directory that holds config.json and the weights.")
    if path.is_absolute() or text.startswith(".") or text.count("/") > 1 or "\\" in text:
        raise ModelError(f"no such model: the directory {text} does not exist.")
    return _download(text, revision)


def _download(repo: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py"]
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelError(f"no such model: {repo} is neither a directory here nor a repository on the hub.") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"no such model here: {repo} is no directory, and the hub could not be reached "
            f"({type(error).__name__}); download the model and pass its directory."
        ) from error


def read_headers(directory: Path) -> Mapping[str, StoredTensor]:
    """Name, shape and dtype of every stored tensor, without reading any weight.

    Raises:
        ModelError: no safetensors files, a shard that is missing or cut short, an index that disagrees.
    """
    headers: dict[str, StoredTensor] = {}
    for file in _weight_files(directory):
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - safe_open is not iterable
                    part = opened.get_slice(name)
                    headers[name] = StoredTensor(file, tuple(part.get_shape()), _dtype(file, name, part.get_dtype()))
        except SafetensorError as error:
            raise ModelError(
                f"{file} is damaged or cut short ({file.stat().st_size} bytes; {error}); fetch it again."
            ) from error
        except OSError as error:
            raise ModelError(f"{file} cannot be read: {error.strerror or error}.") from error
    return headers


def _dtype(file: Path, name: str, stored: str) -> torch.dtype:
    try:
        return _DTYPES[stored]
    except KeyError:
        raise ModelError(f"{file}: tensor {name} is stored as {stored}, which this version cannot read.") from None


def _weight_files(directory: Path) -> list[Path]:
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        try:
            loaded: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))
            names = sorted(set(loaded["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise ModelError(f"{index} is not a safetensors index: {error!r}.") from error
        missing = [n for n in names if not (directory / n).is_file()]
        if missing:
            raise ModelError(f"{directory} lacks {len(missing)} of {len(names)} weight files, {missing[0]} first.")
        return [directory / n for n in names]
    files = sorted(directory.glob("*.safetensors"))
    if files:
        return files
    if any(directory.glob("*.bin")) or any(directory.glob("*.pt")):
        raise ModelError(
            f"{directory} has only pickled weights, which are never loaded because they can run code; "
            "convert them to safetensors with save_pretrained."
        )
    raise ModelError(f"{directory} has no weights: no *.safetensors file.")
