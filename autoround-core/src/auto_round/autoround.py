# SPDX-License-Identifier: Apache-2.0
"""AutoRound: plan, run, export. The façade over the rooms below; it does nothing itself."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from auto_round.calibration.for_model import sample_length, tokens_for
from auto_round.data_type.kernels import check_compiler, kernels_compiled
from auto_round.data_type.results import ResultError
from auto_round.data_type.untouched import WrittenIntoError
from auto_round.errors import (
    ContractError,
    ModelError,
    OutputError,
    PlanError,
    UnknownOptionError,
)
from auto_round.export.chosen import folder_of, folders_of, formats_named, formats_to_write
from auto_round.export.output import check_output, staged_output
from auto_round.model.opened import OpenModel, open_model, wrap_model
from auto_round.names import did_you_mean
from auto_round.option_hints import instead_of
from auto_round.plan import Plan
from auto_round.planning import LayerConfig, choose_scheme, make_plan, with_ignored
from auto_round.plugins import Registry, default_registry
from auto_round.run.job import Job
from auto_round.run.memory import MemoryNeed, memory_needed, peak_memory, told_short
from auto_round.run.progress import SilentProgress, default_progress
from auto_round.run.ranks import joined_ranks
from auto_round.run.report import RunReport, told_unreached, without_tensors
from auto_round.run.resources import device_named, workers_wanted
from auto_round.schemes import QuantizationScheme
from auto_round.tuning.engine import needs_calibration
from auto_round.tuning.options import TuningOptions, is_count
from auto_round.tuning.result import BlockResult, CacheResult, LayerResult
from auto_round.tuning.whole_pass import whole_pass

if TYPE_CHECKING:
    from auto_round.calibration import CalibrationTokens
    from auto_round.data_type import DataType
    from auto_round.export.format import OutputFormat

__all__ = ["AutoRound", "RunReport"]

DEFAULT_FORMAT = "auto_round"
ACTIVATIONS = ("disk", "cpu", "device")
_LOGGER = logging.getLogger(__name__)
_TUNING = frozenset(f.name for f in dataclasses.fields(TuningOptions))
_SCHEME = frozenset(f.name for f in dataclasses.fields(QuantizationScheme))


class AutoRound:
    """Quantizes one causal language model.

    Args:
        model: a directory, a hub id, or a model object, which is then changed in place.
        tokenizer: needed for a model object when calibration data is text; a directory brings its own.
        scheme: name of a scheme, a `QuantizationScheme` or a mapping of its fields, any of which may be given as
            keyword and wins.
        layer_config: layers to treat differently, see `auto_round.selectors` for what a key means.
        ignore_layers: layers to leave at full precision, named as in `layer_config`; one string may name several, with
            commas.
        dataset: calibration data: texts, tokens, a DataLoader, a file, or a hub data set id; see `load_calibration`.
        nsamples, seqlen: how much of it; `seqlen` defaults to 2048 or what the model can take, if that is less.
        pack: join short texts to full samples instead of padding them.
        quant_lm_head: quantize the output layer too; a tied one gets a weight of its own.
        static_kv_dtype: data type in which runtimes shall keep keys and values, with scales that are fixed here.
        disable_opt_rtn: do not search for better scales first; with `iters=0` that is plain rounding.
        enable_alg_ext: an older name for `recipe="best"`.
        device_map: where blocks are computed: "cpu", "cuda", "cuda:1", 1 or "auto" (a GPU if there is one).
        trust_remote_code: allow code that comes with the model to run.
        registry: plugins to use instead of the process-wide ones.
        low_cpu_mem_usage: do not keep the model: a block is read when its turn comes, and let go of when it is written.
        resume: keep a journal of finished blocks, and go on from one that an equal run left when it was cut off.
        restart: forget what an earlier run left in the output's place.
        activations: where those between blocks live, "disk", "cpu" or "device"; on disk by default where a journal is
            kept, which has a copy of them in any case, and in the CPU's memory otherwise. Results do not depend on it.
        low_gpu_mem_usage: an older name for activations that are not on the device, as they are not by default.
        workers: where no data flows, sets of layers that are rounded at once; as many as there are threads if None.
        verbose: show progress on standard error.
        options: fields of `TuningOptions` (iters, lr, batch_size, seed, ...) and of `QuantizationScheme` (bits,
            group_size, sym, data_type, ...).

    Raises:
        UnknownOptionError: an option that does not exist.
        UnknownNameError: a scheme or data type no installed plugin offers.
        ModelError: the model object cannot be quantized; a path is looked at when work begins.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | nn.Module,
        tokenizer: Any = None,
        *,
        scheme: str | QuantizationScheme | Mapping[str, Any] | None = None,
        layer_config: LayerConfig | None = None,
        ignore_layers: str | Sequence[str] = (),
        dataset: Any = None,
        nsamples: int = 128,
        seqlen: int | None = None,
        pack: bool = False,
        quant_lm_head: bool = False,
        static_kv_dtype: str | None = None,
        disable_opt_rtn: bool = False,
        enable_alg_ext: bool = False,
        device_map: str | int | torch.device | None = None,
        trust_remote_code: bool = False,
        registry: Registry | None = None,
        low_cpu_mem_usage: bool = False,
        resume: bool = True,
        restart: bool = False,
        activations: str | None = None,
        low_gpu_mem_usage: bool = False,
        workers: int | None = None,
        verbose: bool = True,
        **options: Any,
    ) -> None:
        tuning = {name: options.pop(name) for name in list(options) if name in _TUNING}
        fields = {name: options.pop(name) for name in list(options) if name in _SCHEME}
        if options:
            name = next(iter(options))
            known = {*_TUNING, *_SCHEME, *AutoRound.__init__.__annotations__}
            instead = instead_of(name)
            told = f": {instead}." if instead else did_you_mean(name, known)
            raise UnknownOptionError(f"AutoRound has no option {name!r}{told}")
        tuning |= {"search": False} if disable_opt_rtn else {}
        if enable_alg_ext and tuning.setdefault("recipe", "best") != "best":
            raise UnknownOptionError(f"enable_alg_ext is recipe best, but recipe is {tuning['recipe']!r}.")
        self.registry = registry or default_registry()
        self.scheme_name, self.scheme = choose_scheme(self.registry, scheme, fields)
        self.registry.data_type_for(self.scheme)  # an unknown data type is said now, not when the model is loaded
        self.options = TuningOptions(**tuning)
        for name, value in (("nsamples", nsamples), ("seqlen", seqlen)):
            if not (value is None and name == "seqlen") and not is_count(value, 1):
                raise UnknownOptionError(f"{name} must be a whole number of at least 1, not {value!r}.")
        if layer_config is not None and not isinstance(layer_config, Mapping):
            raise UnknownOptionError(f"layer_config is a mapping from layers to schemes, not {layer_config!r}.")
        self.layer_config = with_ignored(layer_config or {}, ignore_layers)
        self.quant_lm_head, self.static_kv_dtype = quant_lm_head, static_kv_dtype
        self.dataset, self.nsamples, self.pack = dataset, nsamples, pack
        self.device = device_named(device_map)
        self.trust_remote_code = trust_remote_code
        self.low_cpu_mem_usage, self.resume, self.restart = low_cpu_mem_usage, resume, restart
        if activations not in (None, *ACTIVATIONS):
            raise UnknownOptionError(f"activations must be {', '.join(ACTIVATIONS)} or None, not {activations!r}.")
        if low_gpu_mem_usage and activations == "device":
            raise UnknownOptionError("low_gpu_mem_usage keeps activations off the device, and activations is 'device'.")
        self.activations = activations
        self.workers = workers_wanted(workers)
        self.verbose = verbose
        self.report: RunReport | None = None
        self._seqlen = seqlen
        self._given_tokenizer = tokenizer
        self._source = model
        self._open: OpenModel | None = wrap_model(model, tokenizer) if isinstance(model, nn.Module) else None
        self._plan: Plan | None = None
        self._results: dict[str, LayerResult] = {}
        self._caches: list[CacheResult] = []
        self._released = False
        self._began = False

    # What there is to see

    @property
    def model(self) -> Any:
        """The model's modules; loads them if they are not loaded yet."""
        opened = self._opened()
        if not self._released:
            opened.load()
        return opened.model

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, the model's own if none was given."""
        return self._opened().require_tokenizer()

    def plan(self, format: str | Sequence[str] | None = None) -> Plan:
        """What will be done to every layer, found without reading a weight.

        Args:
            format: output formats to plan for, a name, several joined by commas, or a list.

        Raises:
            PlanError: everything that stands against it.
        """
        return self._make_plan(formats_named(self.registry, format))

    def memory_needed(self, format: str | Sequence[str] | None = None) -> MemoryNeed:
        """What a run with `low_cpu_mem_usage` will need at its peak; no weight and no text is read for it."""
        return self._memory_needed(self.plan(format), self.options)

    def memory_short(self, format: str | Sequence[str] | None = None) -> str | None:
        """What to tell a user whose machine has less free memory than such a run needs; None if it has enough."""
        return self._memory_short(self.plan(format))

    # What there is to do

    def quantize(self, format: str | Sequence[str] | None = None) -> tuple[Any, dict[str, dict[str, Any]]]:
        """Quantize in memory.

        Args:
            format: what `save_quantized` will write: scales are rounded to the dtype that is stored there. None means
                the default format, where that can hold the layers.

        Returns:
            the model, whose weights are now what the codes stand for, and for each linear layer the fields of the
            scheme it was quantized under.

        Raises:
            AutoRoundError: of the kind that says what went wrong.
        """
        self._begin_anew()
        self._run(self._plan_to_save(format), [], None)
        assert self._plan is not None
        return self.model, {layer.name: layer.scheme.to_dict() for layer in self._plan.layers}

    def save_quantized(
        self,
        output_dir: str | os.PathLike[str],
        format: str | Sequence[str] = DEFAULT_FORMAT,
        inplace: bool = True,
    ) -> list[str]:
        """Write what `quantize` made.

        Args:
            inplace: for scripts that say it: nothing of the model changes here, either way.

        Returns:
            the directories written, one per format.

        Raises:
            OutputError: nothing is quantized yet, or the directory cannot be used.
            PlanError: the format cannot hold it.
        """
        if self._plan is None or not self._results:
            raise OutputError("nothing is quantized yet: call quantize() first, or quantize_and_save().")
        formats = formats_to_write(self.registry, format)
        wanted = self._make_plan(formats)
        for layer in wanted.quantized:
            used = self._results[layer.name].layer.scale_dtype or torch.float16
            if layer.scale_dtype not in (None, used):
                told = f"quantized with scales in {used}, and format {format} stores {layer.scale_dtype}"
                raise PlanError([f"{layer.name} was {told}: say quantize(format={format!r}) before."])
        folders = folders_of(Path(output_dir), formats)
        for folder in folders:
            check_output(folder, wanted.output_bytes)
        with ExitStack() as stack:
            for output_format, folder in zip(formats, folders, strict=True):
                exporter = output_format.start(wanted, self._opened(), stack.enter_context(staged_output(folder)))
                for result in self._results.values():
                    exporter.add(result)
                for cache in self._caches:
                    exporter.add_cache(cache)
                exporter.finish()
        return [str(folder) for folder in folders]

    def quantize_and_save(
        self,
        output_dir: str | os.PathLike[str] = "tmp_autoround",
        format: str | Sequence[str] = DEFAULT_FORMAT,
        inplace: bool = True,
    ) -> tuple[Any, list[str]]:
        """Quantize and write each block as soon as it is done.

        Until it is complete, what is finished lies in `<output_dir>.unfinished`; the same call goes on from there.

        Args:
            inplace: a model object is changed in place, and there is no other way with one.

        Returns:
            the model and the directories written, one per format. With `low_cpu_mem_usage`, or among several processes,
            the weights of a model that came from files are on the meta device: load what was written.

        Raises:
            AutoRoundError: of the kind that says what went wrong; no output directory is left then, and of an
                unfinished one only what the same call can go on from.
        """
        if not inplace and isinstance(self._source, nn.Module):
            raise UnknownOptionError("a model object is changed in place: give a path instead of it, or a copy.")
        formats = formats_to_write(self.registry, format)
        self._begin_anew()
        self._run(self._make_plan(formats), formats, Path(output_dir))
        return self.model, [str(folder) for folder in folders_of(Path(output_dir), formats)]

    # How

    def _run(self, plan: Plan, formats: list[OutputFormat], output: Path | None) -> None:
        began = time.monotonic()
        for note in plan.notes:
            _LOGGER.warning("note: %s", note)
        if not plan.quantized:
            reasons = sorted({layer.reason for layer in plan.layers})
            raise PlanError([f"no layer of {plan.model} would be quantized: {'; '.join(reasons)}."])
        if output is not None:
            check_output(output, plan.output_bytes)
        if self.options.enable_torch_compile:
            check_compiler(self.device)
        with joined_ranks(self.device) as ranks:
            if self.options.e2e_iters and ranks.size > 1:
                raise UnknownOptionError("e2e_iters is for one process: its steps need the whole model in each.")
            # A model object is not ours to let go of.
            lets_go = (self.low_cpu_mem_usage and not self.options.e2e_iters) or ranks.size > 1
            keep = output is None or self._opened().directory is None or not lets_go
            short = None if keep or self.device.type != "cpu" else self._memory_short(plan)
            if short is not None and ranks.writes:
                _LOGGER.warning("note: %s", short)
            tokens = self._tokens() if needs_calibration(plan, self.options) else None
            progress = default_progress() if self.verbose and ranks.writes else SilentProgress()
            job = Job(
                self._opened(), plan, self.options, tokens, self.device, progress, self.registry, ranks, keep,
                workers=self.workers, resume=self.resume, restart=self.restart, activations=self.activations,
            )  # fmt: skip
            by_folder = {folder_of(name) if len(formats) > 1 else "": name for name in formats}
            self._plan, self._results, self._caches = plan, {}, []
            results = job.in_memory() if output is None else job.to_files(output, by_folder)
            self._began = True
            try:
                with closing(results), kernels_compiled(wanted=self.options.enable_torch_compile):
                    blocks = self._take(results, keep=output is None, tells=ranks.writes)
            except (ResultError, WrittenIntoError) as error:
                raise ContractError(f"{error} {_told_maker(self.registry, error.data_type)}") from error
            finally:
                progress.close()
        self._released = not keep
        self.report = RunReport(time.monotonic() - began, peak_memory(), blocks, job.outcome)

    def _begin_anew(self) -> None:
        """Forget the weights of a model that a run before this one has changed; its files have them as they were.

        Raises:
            ModelError: there are no files.
        """
        if self._began and self._opened().directory is None:
            raise ModelError(
                f"{self._opened().name} was quantized in place before, at least in part: save what quantize() made "
                "with save_quantized, or begin with the original model object and a new AutoRound."
            )
        if self._began:
            self._open, self._released, self._began = None, False, False

    def _plan_to_save(self, format: str | Sequence[str] | None) -> Plan:
        """What to do in memory, to be saved later: in the default format, if none is named and it can hold that."""
        if format is not None:
            return self._make_plan(formats_to_write(self.registry, format))
        try:
            return self._make_plan(formats_named(self.registry, DEFAULT_FORMAT))
        except PlanError:
            return self._make_plan([])

    def _take(self, results: Generator[BlockResult, None, None], *, keep: bool, tells: bool) -> tuple[BlockResult, ...]:
        """Have the work done, part by part; returns what a report says of each block.

        Args:
            keep: the layers, for `save_quantized`.
            tells: the user about layers that calibration hardly reached.
        """
        blocks: dict[str, BlockResult] = {}
        for block in results:
            if keep:
                self._results |= {result.layer.name: result for result in block.layers}
            self._caches += block.caches
            blocks[block.name] = without_tensors(blocks.get(block.name), block)
            for told in told_unreached(block) if tells else ():
                _LOGGER.warning("note: %s", told)
            del block  # not to be there while the next one is made
        return tuple(blocks.values())

    def _tokens(self) -> CalibrationTokens:
        return tokens_for(
            self._opened(), self.dataset, nsamples=self.nsamples, seqlen=self._seqlen, pack=self.pack,
            joined=self.options.joined,
        )  # fmt: skip

    def _memory_needed(self, plan: Plan, options: TuningOptions) -> MemoryNeed:
        model = self._opened().model
        length = sample_length(self._opened(), self._seqlen)
        together = None
        if options.e2e_iters:
            together = whole_pass(model, max(1, options.batch_size // options.joined), length * options.joined)
        return memory_needed(
            plan, options, flows=needs_calibration(plan, options), samples=self.nsamples, seqlen=length,
            features=getattr(model.config, "hidden_size", 0), workers=self.workers,
            together=together, elsewhere=self.activations == "device" and self.device.type != "cpu",
        )  # fmt: skip

    def _memory_short(self, plan: Plan) -> str | None:
        thrifty = None
        if self.options.iters and not self.options.improved and not self.options.low_memory:
            thrifty = self._memory_needed(plan, dataclasses.replace(self.options, low_memory=True))
        return told_short(self._memory_needed(plan, self.options), thrifty)

    def _opened(self) -> OpenModel:
        if self._open is None:
            source: Any = self._source
            options: dict[str, Any] = {"tokenizer": self._given_tokenizer, "trust_remote_code": self.trust_remote_code}
            self._open = open_model(source, registry=self.registry, **options)
        return self._open

    def _make_plan(self, formats: Sequence[OutputFormat]) -> Plan:
        return make_plan(
            self._opened(),
            self.scheme,
            self.registry,
            scheme_name=self.scheme_name,
            layer_config=self.layer_config,
            quant_lm_head=self.quant_lm_head,
            formats=formats,
            cache_data_type=self.static_kv_dtype,
        )


def _told_maker(registry: Registry, data_type: DataType) -> str:
    maker = registry.provenance(data_type)
    who = maker.distribution or f"plugin {maker.plugin}"
    return f"It comes with {f'{who} {maker.version}'.strip()}."
