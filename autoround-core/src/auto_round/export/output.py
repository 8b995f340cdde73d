# SPDX-License-Identifier: Apache-2.0
"""The output directory: absent, complete, or beside it a directory that says in its name that it is not finished."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from auto_round.errors import OutputError
from auto_round.sizes import readable_size

__all__ = ["RunDirectory", "check_output", "run_directory", "staged_output"]

UNFINISHED = ".unfinished"
SPACE_MARGIN = 1.02  # headers, tokenizer and config beside the weights


def check_output(directory: Path, expected_bytes: int) -> None:
    """Refuse, before any work, a place that cannot take the result.

    Raises:
        OutputError: the directory is a file, is not empty, cannot be written, or the disk is too full.
    """
    if directory.exists() and not directory.is_dir():
        raise OutputError(f"{directory} is a file; name a directory for the output.")
    _check_empty(directory)
    if directory.is_dir() and os.path.ismount(directory):
        raise OutputError(f"{directory} is a mount point, which nothing can be renamed to; name a directory in it.")
    parent = _existing_parent(directory.absolute().parent)
    if not os.access(parent, os.W_OK):
        raise OutputError(f"{parent} cannot be written to; name another directory for the output.")
    free = shutil.disk_usage(parent).free
    if free < expected_bytes * SPACE_MARGIN:
        raise OutputError(
            f"the disk of {parent} has {readable_size(free)} free and the output needs {readable_size(expected_bytes)}."
        )


def _check_empty(directory: Path) -> None:
    if directory.is_dir() and any(directory.iterdir()):
        raise OutputError(f"{directory} is not empty; name another directory or empty it, nothing is overwritten.")


@dataclass(frozen=True)
class RunDirectory:
    """What lies beside an output that is not finished, in a directory named after it.

    Attributes:
        files: the output so far; anew at each start.
        journal: what a run that was cut off goes on from.
    """

    files: Path
    journal: Path

    @property
    def worth_keeping(self) -> bool:
        """Whether anything is finished."""
        return self.journal.is_dir() and any(self.journal.glob("part-*.json"))


@contextmanager
def run_directory(output: Path, *, restart: bool = False) -> Iterator[RunDirectory]:
    """A place to write into that becomes `output` when the context ends well.

    When it does not, what the journal holds stays, if it holds anything, and everything else disappears.

    Args:
        restart: forget what an earlier run left.

    Raises:
        OutputError: another run is at work there, or writing failed, the disk being full included.
    """
    root = output.with_name(output.name + UNFINISHED)
    place = RunDirectory(root / "files", root / "journal")
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / "lock").open("w")
    except OSError as error:
        raise OutputError(f"{root} could not be made: {error.strerror or error}.") from error
    with lock:
        _hold(lock, root)  # before anything is touched: it may be somebody else's
        try:
            _check_empty(output)  # who held the lock before may have finished
            for left in (place.files, place.journal) if restart else (place.files,):
                if left.exists():
                    shutil.rmtree(left)
            place.files.mkdir()
            yield place
            if output.is_dir():
                output.rmdir()  # only ever an empty one; fails rather than removing anything
            place.files.rename(output)
            shutil.rmtree(root, ignore_errors=True)
        except OSError as error:
            kept = _clean(root, place)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise OutputError(f"the disk of {output.parent} is full; {kept}.") from error
            raise OutputError(f"{output} could not be written: {error.strerror or error}; {kept}.") from error
        except BaseException:
            _clean(root, place)
            raise


def _clean(root: Path, place: RunDirectory) -> str:
    """Remove what cannot be gone on from; says what is left."""
    shutil.rmtree(place.files, ignore_errors=True)
    if place.worth_keeping:
        return f"what is finished is kept in {root}, and the same command goes on from there"
    shutil.rmtree(root, ignore_errors=True)
    return "nothing was left behind"


def _hold(lock: IO[str], root: Path) -> None:
    """Refuse a directory that another process is writing into; nobody else gets it until the file is closed.

    Raises:
        OutputError: one is.
    """
    try:
        import fcntl
    except ImportError:  # not a Unix
        return
    told = f"another run is writing into {root}; wait for it, or name another output."
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputError(told) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):  # some network file systems have no locks
            raise OutputError(f"{root} could not be locked: {error.strerror or error}.") from error
    if not (root / "lock").exists():  # it finished, and removed what we hold, between our opening and locking it
        raise OutputError(told)


@contextmanager
def staged_output(directory: Path) -> Iterator[Path]:
    """A directory to write into that becomes `directory` when the context ends well and disappears when it does not.

    Raises:
        OutputError: writing failed, the disk being full included.
    """
    with run_directory(directory, restart=True) as place:
        yield place.files


def _existing_parent(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
