# SPDX-License-Identifier: Apache-2.0
"""The journal of a run: every finished part, and what the next one starts from, on disk before it is counted.

A part is a file of tensors and then, in one rename, a file that says that it is whole. Whatever else lies there was not
finished and is forgotten. Both live activations are kept as they are: computing them anew gives other numbers, and a
loss that starts elsewhere.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from auto_round.calibration.store import ActivationStore
from auto_round.errors import OutputError
from auto_round.run.fingerprint import Fingerprint, differences
from auto_round.run.records import from_record, to_record

if TYPE_CHECKING:
    from auto_round.plan import Plan
    from auto_round.tuning.chains import Chains
    from auto_round.tuning.result import BlockResult

__all__ = ["Journal", "empty"]

SHOWN = 3
"""Differences that a message names."""


class Journal:
    """The finished parts of one run.

    Attributes:
        done: how many there are.
        store: where the activations of the run are kept.
    """

    def __init__(self, directory: Path, store: ActivationStore) -> None:
        self._directory = directory
        self._chains: dict[str, Any] | None = None
        self.store = store
        self.done = 0

    @classmethod
    def open(cls, directory: Path, told: Fingerprint) -> Journal:
        """The journal of a directory, new or of an equal run that was cut off.

        Raises:
            OutputError: a different run was, or its journal cannot be read.
        """
        file = directory / "run.json"
        if file.is_file():
            try:
                found = json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise OutputError(f"{file} cannot be read ({error}); start anew with restart (--restart).") from error
            unlike = differences(found, told)
            if unlike:
                more = f" and {len(unlike) - SHOWN} more" if len(unlike) > SHOWN else ""
                raise OutputError(
                    f"{directory.parent} holds an unfinished run that differs ({'; '.join(unlike[:SHOWN])}{more}): run "
                    "that command again to finish it, or start anew with restart (--restart)."
                )
        else:
            directory.mkdir(parents=True, exist_ok=True)
            _write(file, json.dumps(told, indent=1))
        journal = cls(directory, ActivationStore(directory))
        while journal._fact_file(journal.done).is_file():
            journal.done += 1
        if journal.done:
            journal._chains = journal._facts(journal.done - 1)["chains"]
        journal._forget_the_rest()
        return journal

    def parts(self, plan: Plan) -> Iterator[BlockResult]:
        """The finished parts, in order.

        Raises:
            OutputError: one cannot be read.
        """
        for number in range(self.done):
            try:
                tensors = load_file(self._tensor_file(number))
            except (OSError, SafetensorError) as error:
                raise OutputError(
                    f"{self._tensor_file(number)} cannot be read ({error}); start anew with restart (--restart)."
                ) from error
            yield from_record(self._facts(number)["part"], tensors, plan)

    def restore(self, chains: Chains) -> None:
        """Put the activations there that the next part starts from."""
        if self._chains is None:
            return
        shape = tuple(chains.reference.shape)
        dtype = chains.reference.dtype
        chains.reference = self.store.open(self._chains["reference"], dtype, shape)
        same = self._chains["quantized"] == self._chains["reference"]
        chains.quantized = chains.reference if same else self.store.open(self._chains["quantized"], dtype, shape)
        self.store.keep(set(self._chains.values()))

    def add(self, result: BlockResult, chains: Chains | None) -> None:
        """Keep one more finished part, and the activations behind it."""
        facts, tensors = to_record(result)
        names = None
        if chains is not None:
            names = {"reference": self.store.file_of(chains.reference)}
            names["quantized"] = self.store.file_of(chains.quantized)
        save_file(tensors, self._tensor_file(self.done))
        _write(self._fact_file(self.done), json.dumps({"part": facts, "chains": names}))
        self.done += 1
        if names is not None:
            self.store.keep(set(names.values()))

    def _forget_the_rest(self) -> None:
        known = {self._tensor_file(n).name for n in range(self.done)}
        for path in self._directory.glob("part-*.safetensors"):
            if path.name not in known:
                path.unlink()
        self.store.keep(set((self._chains or {}).values()))

    def _facts(self, number: int) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(self._fact_file(number).read_text(encoding="utf-8"))
        return facts

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


def empty(directory: Path) -> bool:
    """Whether nothing in a journal is worth going on from."""
    return not any(directory.glob("part-*.json"))
