# SPDX-License-Identifier: Apache-2.0
"""What a run is asked for beyond scheme and format, by environment variables.

| variable | meaning |
|---|---|
| `AUTO_ROUND_GGUF_IMATRIX` | importance file of llama.cpp to use in place of what calibration observes |
| `AUTO_ROUND_GGUF_SAVE_IMATRIX` | file for what calibration observed; the older kind if it ends in `.dat` |
| `AUTO_ROUND_GGUF_SHARD_SIZE` | bytes at which files are cut, `500M` or `2G`; absent means one file |
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from auto_round.errors import UnknownOptionError

__all__ = ["imatrix_to_read", "imatrix_to_write", "shard_bytes"]

READ, WRITE, SHARD = "AUTO_ROUND_GGUF_IMATRIX", "AUTO_ROUND_GGUF_SAVE_IMATRIX", "AUTO_ROUND_GGUF_SHARD_SIZE"
UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3}
"""Those of llama.cpp, which counts in thousands."""


def imatrix_to_read() -> Path | None:
    """The importance file to use."""
    return _path(READ)


def imatrix_to_write() -> Path | None:
    """The importance file to write."""
    return _path(WRITE)


def shard_bytes() -> int:
    """Bytes at which files are cut; 0 for never.

    Raises:
        UnknownOptionError: no size.
    """
    text = os.environ.get(SHARD, "")
    found = re.fullmatch(r"(\d+)([KMG]?)B?", text.strip().upper())
    if text and not found:
        raise UnknownOptionError(f"{SHARD}={text} is no size; write bytes, 500M or 2G.")
    return int(found[1]) * UNITS[found[2]] if found else 0


def _path(variable: str) -> Path | None:
    text = os.environ.get(variable)
    return Path(text) if text else None
