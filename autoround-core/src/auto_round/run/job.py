# SPDX-License-Identifier: Apache-2.0
"""One run from the plan to the last byte: the engine works, the journal remembers, exporters write."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from auto_round.calibration.store import ActivationStore
from auto_round.export.output import RunDirectory, run_directory
from auto_round.run.fingerprint import fingerprint
from auto_round.run.journal import Journal
from auto_round.run.ranks import Ranks
from auto_round.run.records import from_bytes, to_bytes
from auto_round.tuning.end_to_end import Checkpoint, Outcome, tune_end_to_end
from auto_round.tuning.engine import Engine, Progress, needs_calibration, parts_of

if TYPE_CHECKING:
    from auto_round.calibration import CalibrationTokens
    from auto_round.export.format import Exporter, OutputFormat
    from auto_round.model.opened import OpenModel
    from auto_round.plan import Plan
    from auto_round.plugins import Registry
    from auto_round.tuning.options import TuningOptions
    from auto_round.tuning.result import BlockResult

__all__ = ["Job"]

_LOGGER = logging.getLogger(__name__)


@dataclass(eq=False)
class Job:
    """What a run works with.

    Attributes:
        model, plan, options, tokens, device, progress: as in `Engine`.
        registry: the plugins in use, which a journal remembers.
        ranks: the processes that share the run.
        keep: whether the model stays in memory.
        workers: sets of layers that are rounded at once.
        resume: keep a journal, and go on from one.
        restart: forget what an earlier run left.
        activations: where activations live: "disk", "cpu", "device"; None for disk where there is a journal, else cpu.
        outcome: of the steps of all blocks together, once they are done.
    """

    model: OpenModel
    plan: Plan
    options: TuningOptions
    tokens: CalibrationTokens | None
    device: torch.device
    progress: Progress
    registry: Registry
    ranks: Ranks
    keep: bool
    workers: int = 1
    resume: bool = True
    restart: bool = False
    activations: str | None = None
    outcome: Outcome | None = field(default=None, init=False)

    def in_memory(self) -> Generator[BlockResult, None, None]:
        """Quantize and write nothing."""
        engine = self._engine(self._store(Path(tempfile.gettempdir())))
        engine.begin()
        for result in self._finished(engine.run(), Checkpoint()):
            self._take(result)
            yield result
            del result  # not to be there while the next one is made

    def to_files(self, output: Path, formats: Mapping[str, OutputFormat]) -> Generator[BlockResult, None, None]:
        """Quantize and write.

        Args:
            output: the directory that is there when the last result was taken.
            formats: by the folder below it that each is written into, "" for itself.
        """
        if not self.ranks.writes:
            yield from self._helping()
            return
        with run_directory(output, restart=self.restart) as place:
            journal = self._journal(place, list(formats.values()))
            engine = self._engine(journal.store if journal is not None else self._store(place.files.parent))
            done = 0 if journal is None else journal.done
            self.ranks.agree(done)
            engine.begin(done, () if journal is None or not self.keep else journal.parts(self.plan))
            if journal is not None and engine.chains is not None:
                journal.restore(engine.chains)
            self._share_chains(engine, done)
            exporters = [
                output_format.start(self.plan, self.model, _made(place.files / folder))
                for folder, output_format in formats.items()
            ]
            checkpoint = Checkpoint() if journal is None else Checkpoint(*journal.steps(), journal.keep_steps)
            for result in self._finished(self._parts(engine, journal, done), checkpoint):
                self._take(result, exporters)
                yield result
                del result  # not to be there while the next one is made
            for exporter in exporters:
                exporter.finish()
        self.ranks.together()

    def _parts(self, engine: Engine, journal: Journal | None, done: int) -> Iterator[BlockResult]:
        """Those that an earlier run finished, and the others, in the journal before they are counted."""
        if done:
            _LOGGER.warning("note: going on after %d finished parts of an earlier run.", done)
            assert journal is not None
            yield from journal.parts(self.plan)
        for result in self._gathered(engine, done):
            if journal is not None:
                journal.add(result, engine.chains)
            yield result
            del result

    def _finished(self, parts: Iterator[BlockResult], checkpoint: Checkpoint) -> Iterator[BlockResult]:
        """Parts as they are to be written: as they are, or after steps of them all together."""
        if not self.options.e2e_iters:
            yield from parts
            return
        assert self.tokens is not None
        held = list(parts)
        self.progress.end_to_end(self.options.e2e_iters, checkpoint.step)
        finished, self.outcome = tune_end_to_end(
            self.model.model, held, self.tokens, self.options, self.device, checkpoint, self.progress.step
        )
        del held  # with all that is no longer learnt
        self.progress.end_to_end_done(self.outcome)
        yield from finished

    def _take(self, result: BlockResult, exporters: Sequence[Exporter] = ()) -> None:
        """A part is finished: the model is told what it changed, and exporters what there is to write."""
        self.model.changed.update(result.changed)
        for exporter in exporters:
            for layer in result.layers:
                exporter.add(layer)
            for cache in result.caches:
                exporter.add_cache(cache)

    @property
    def _memory(self) -> torch.device | None:
        """Where activations live if not on disk, None if there."""
        return {"cpu": torch.device("cpu"), "device": self.device}.get(self.activations or "")

    def _store(self, directory: Path) -> ActivationStore:
        """Where activations live without a journal; files in the directory are gone with this process."""
        if self.activations == "disk":
            return ActivationStore(directory, lasting=False)
        return ActivationStore(memory=self._memory)

    def _engine(self, store: ActivationStore) -> Engine:
        return Engine(
            self.model, self.plan, self.options, self.tokens, self.device, self.progress, store, self.ranks, self.keep,
            self.workers,
        )  # fmt: skip

    def _journal(self, place: RunDirectory, formats: Sequence[OutputFormat]) -> Journal | None:
        if not self.resume or self.model.directory is None:
            return None
        names = [output_format.name for output_format in formats]
        told = fingerprint(
            self.model, self.plan, self.options, self.tokens, self.registry, names, self.device, self.ranks.size
        )
        return Journal.open(place.journal, told, self._memory)

    def _helping(self) -> Iterator[BlockResult]:
        """The part of a rank that writes nothing."""
        engine = self._engine(self._store(Path(tempfile.gettempdir())))
        done = self.ranks.agree(0)
        engine.begin(done)
        self._share_chains(engine, done)
        yield from self._gathered(engine, done)
        self.ranks.together()  # what was written is there now

    def _share_chains(self, engine: Engine, done: int) -> None:
        """Every rank starts from the activations that the one that writes has."""
        if engine.chains is not None and done and self.ranks.size > 1:
            self.ranks.share(engine.chains.reference)
            if not self.ranks.writes:
                engine.chains.quantized = engine.chains.store.like(engine.chains.reference)
            self.ranks.share(engine.chains.quantized)

    def _gathered(self, engine: Engine, done: int) -> Iterator[BlockResult]:
        """Results as the rank that writes needs them; where no data flows each rank rounds its share."""
        if self.ranks.size == 1 or needs_calibration(self.plan, self.options):
            yield from engine.run(done)
            return
        parts = parts_of(self.plan, self.options)[done:]
        mine = iter(engine.round([layers for _, layers in parts[self.ranks.rank :: self.ranks.size]]))
        for number in range(len(parts)):
            source = number % self.ranks.size
            result = next(mine) if source == self.ranks.rank else None
            data = self.ranks.hand_over(None if result is None else to_bytes(result), source)
            if data is not None:
                yield from_bytes(data, self.plan)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
