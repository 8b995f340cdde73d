# SPDX-License-Identifier: Apache-2.0
"""The journal of a run: every finished part, and what the next one starts from, on disk before it is counted.

A part is a file of tensors and then, in one rename, a file that says that it is whole, and what is in it and in those
of the activations. Whatever else lies there was not finished and is forgotten. Both live activations are kept as they
are: computing them anew gives other numbers, and a loss that starts elsewhere.
"""

from __future__ import annotations

import errno
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from auto_round.calibration.store import ActivationStore
from auto_round.errors import OutputError
from auto_round.run.fingerprint import Fingerprint, differences
from auto_round.run.records import from_record, to_record

if TYPE_CHECKING:
    import torch

    from auto_round.plan import Plan
    from auto_round.tuning.chains import Chains
    from auto_round.tuning.result import BlockResult

__all__ = ["Journal"]

SHOWN = 3
"""Differences that a message names."""

_PIECE = 1 << 20
"""Bytes of a file that are read at once."""


class Journal:
    """The finished parts of one run.

    Attributes:
        done: how many there are.
        store: where the activations of the run are kept.
    """

    def __init__(self, directory: Path, store: ActivationStore) -> None:
        self._directory = directory
        self._chains: dict[str, str] = {}
        self._sums: dict[str, int] = {}
        self.store = store
        self.done = 0

    @classmethod
    def open(cls, directory: Path, told: Fingerprint, memory: torch.device | None = None) -> Journal:
        """The journal of a directory, new or of an equal run that was cut off.

        Args:
            memory: where activations live; None for files of the journal, which has a copy of them in any case.

        Raises:
            OutputError: a different run was, or its journal cannot be read.
        """
        file = directory / "run.json"
        journal = cls(directory, ActivationStore(directory, memory))
        while journal._fact_file(journal.done).is_file():
            journal.done += 1
        if journal.done:
            unlike = differences(_read(file), told)
            if unlike:
                more = f" and {len(unlike) - SHOWN} more" if len(unlike) > SHOWN else ""
                raise OutputError(
                    f"{directory.parent} holds an unfinished run that differs ({'; '.join(unlike[:SHOWN])}{more}): run "
                    "that command again to finish it, or start anew with restart (--restart)."
                )
            last = _read(journal._fact_file(journal.done - 1))
            journal._chains, journal._sums = last.get("chains", {}), last.get("sums", {})
        else:
            directory.mkdir(parents=True, exist_ok=True)
            _write(file, json.dumps(told, indent=1))
        journal._forget_the_rest()
        return journal

    def parts(self, plan: Plan) -> Iterator[BlockResult]:
        """The finished parts, in order.

        Raises:
            OutputError: one cannot be read.
        """
        for number in range(self.done):
            facts, file = _read(self._fact_file(number)), self._tensor_file(number)
            self._check(file, facts.get("sums", {}))
            try:
                tensors = load_file(file)
                result = from_record(facts["part"], tensors, plan)
            except (OSError, SafetensorError, KeyError, TypeError) as error:
                raise _unreadable(file, error) from error
            yield result

    def restore(self, chains: Chains) -> None:
        """Put the activations there that the next part starts from.

        Raises:
            OutputError: they cannot be read.
        """
        if not self._chains:
            return
        shape, dtype = tuple(chains.reference.shape), chains.reference.dtype
        opened: dict[str, torch.Tensor] = {}
        for name in dict.fromkeys(self._chains.values()):
            try:
                opened[name] = self.store.open(name, dtype, shape)
            except OSError as error:
                raise _unreadable(self._directory / name, error) from error
            self._check(self._directory / name, self._sums)
        chains.reference = opened[self._chains["reference"]]
        chains.quantized = opened[self._chains["quantized"]]
        self.store.keep(set(opened))

    def add(self, result: BlockResult, chains: Chains | None) -> None:
        """Keep one more finished part, and the activations behind it.

        Raises:
            OSError: writing failed; the parts before it are not touched.
        """
        facts, tensors = to_record(result)
        names = {}
        if chains is not None:
            names = {"reference": self.store.file_of(chains.reference)}
            names["quantized"] = self.store.file_of(chains.quantized)
        file = self._tensor_file(self.done)
        try:
            save_file(tensors, file)
        except SafetensorError as error:
            raise _system_error(error) from error
        sums = {path.name: _settle(path) for path in (file, *(self._directory / name for name in set(names.values())))}
        _write(self._fact_file(self.done), json.dumps({"part": facts, "chains": names, "sums": sums}))
        self.done += 1
        if names:
            self.store.keep(set(names.values()))

    def steps(self) -> tuple[int, dict[str, torch.Tensor]]:
        """How many steps of all blocks together are done, and what they came to.

        Raises:
            OutputError: it cannot be read.
        """
        if not self._steps_file.is_file():
            return 0, {}
        facts = _read(self._steps_file)
        try:
            step, file, sums = int(facts["step"]), self._directory / facts["file"], dict(facts["sums"])
        except (KeyError, TypeError, ValueError) as error:
            raise _unreadable(self._steps_file, "it is not what was written") from error
        self._check(file, sums)
        try:
            return step, load_file(file)
        except (OSError, SafetensorError) as error:
            raise _unreadable(file, error) from error

    def keep_steps(self, step: int, state: Mapping[str, torch.Tensor]) -> None:
        """Keep what these steps of all blocks together came to instead of what earlier ones did.

        Raises:
            OSError: writing failed; what was kept before is not touched.
        """
        file = self._directory / f"steps-{step:06d}.safetensors"
        try:
            save_file({name: tensor.cpu().contiguous() for name, tensor in state.items()}, file)
        except SafetensorError as error:
            raise _system_error(error) from error
        _write(self._steps_file, json.dumps({"step": step, "file": file.name, "sums": {file.name: _settle(file)}}))
        for earlier in self._directory.glob("steps-*.safetensors"):
            if earlier != file:
                earlier.unlink()

    @property
    def _steps_file(self) -> Path:
        return self._directory / "steps.json"

    def _check(self, file: Path, sums: Mapping[str, int]) -> None:
        try:
            found = _sum(file)
        except OSError as error:
            raise _unreadable(file, error) from error
        if found != sums.get(file.name):
            raise _unreadable(file, "it is not what was written")

    def _forget_the_rest(self) -> None:
        known = {path for n in range(self.done) for path in (self._tensor_file(n), self._fact_file(n))}
        for path in sorted(self._directory.glob("part-*")):
            if path not in known:
                path.unlink()
        kept = _read(self._steps_file).get("file") if self._steps_file.is_file() else None
        for path in sorted(self._directory.glob("steps-*.safetensors")):
            if path.name != kept:
                path.unlink()
        self.store.keep(set(self._chains.values()))

    def _tensor_file(self, number: int) -> Path:
        return self._directory / f"part-{number:06d}.safetensors"

    def _fact_file(self, number: int) -> Path:
        return self._directory / f"part-{number:06d}.json"


def _write(file: Path, text: str) -> None:
    """The whole text or nothing."""
    unfinished = file.with_suffix(".unfinished")
    with unfinished.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    unfinished.replace(file)


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(file, error) from error
    if not isinstance(found, dict):
        raise _unreadable(file, "it is not what was written")
    return found


def _unreadable(file: Path, why: object) -> OutputError:
    return OutputError(f"{file} cannot be read ({why}); start anew with restart (--restart).")


def _settle(file: Path) -> int:
    """See to it that a file is on disk; returns its sum."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
    return _sum(file)


def _sum(file: Path) -> int:
    """CRC-32 of a file."""
    total, piece = 0, memoryview(bytearray(_PIECE))
    with file.open("rb", buffering=0) as stream:
        while size := stream.readinto(piece):  # into the same memory again: new memory costs as much as reading
            total = zlib.crc32(piece[:size], total)
    return total


def _system_error(error: SafetensorError) -> OSError:
    """What the system said, of which the library tells the number in words."""
    told = re.search(r"os error (\d+)", str(error))
    number = int(told[1]) if told else errno.EIO
    return OSError(number, os.strerror(number) if told else str(error))
