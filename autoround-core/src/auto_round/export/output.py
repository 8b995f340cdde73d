# SPDX-License-Identifier: Apache-2.0
"""The output directory: absent, complete, or beside it a directory that says in its name that it is not finished."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from auto_round.errors import OutputError
from auto_round.sizes import readable_size

__all__ = ["check_output", "staged_output"]

UNFINISHED = ".unfinished"
SPACE_MARGIN = 1.02  # headers, tokenizer and config beside the weights


def check_output(directory: Path, expected_bytes: int) -> None:
    """Refuse, before any work, a place that cannot take the result.

    Raises:
        OutputError: the directory is a file, is not empty, cannot be written, or the disk is too full.
    """
    if directory.exists() and not directory.is_dir():
        raise OutputError(f"{directory} is a file; name a directory for the output.")
    if directory.is_dir() and any(directory.iterdir()):
        raise OutputError(f"{directory} is not empty; name another directory or empty it, nothing is overwritten.")
    parent = _existing_parent(directory)
    if not os.access(parent, os.W_OK):
        raise OutputError(f"{parent} cannot be written to; name another directory for the output.")
    free = shutil.disk_usage(parent).free
    if free < expected_bytes * SPACE_MARGIN:
        raise OutputError(
            f"the disk of {parent} has {readable_size(free)} free and the output needs {readable_size(expected_bytes)}."
        )


@contextmanager
def staged_output(directory: Path) -> Iterator[Path]:
    """A directory to write into that becomes `directory` when the context ends well and disappears when it does not.

    Raises:
        OutputError: writing failed, the disk being full included.
    """
    staging = directory.with_name(directory.name + UNFINISHED)
    try:
        if staging.exists():
            shutil.rmtree(staging)
        staging.mkdir(parents=True)
        yield staging
        if directory.is_dir():
            directory.rmdir()  # only ever an empty one; fails rather than removing anything
        staging.rename(directory)
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        if error.errno == errno.ENOSPC:
            raise OutputError(f"the disk of {directory.parent} is full; nothing was left behind.") from error
        raise OutputError(f"{directory} could not be written: {error.strerror or error}.") from error
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _existing_parent(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
