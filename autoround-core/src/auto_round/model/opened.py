# SPDX-License-Identifier: Apache-2.0
"""A model that is open: its modules, its tokenizer, its files; and the same without weights, for planning."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from auto_round.errors import ModelError
from auto_round.model.experts import experts_of, split_experts
from auto_round.model.file_names import file_names, read_apart
from auto_round.model.finite import not_finite
from auto_round.model.others import other_tensors
from auto_round.model.reader import PlainReader, WeightReader
from auto_round.model.source import StoredTensor, locate, read_headers
from auto_round.model.structure import Structure, find_structure
from auto_round.model.watched import Watched, watch
from auto_round.model.weights import OUTSIDE, PartLoader, Target, build, find_targets, first_line
from auto_round.names import experts_above, prefix_change
from auto_round.plugins import Registry, default_registry
from auto_round.torch_defaults import BUILDING

__all__ = ["OpenModel", "open_model", "wrap_model"]


@dataclass
class OpenModel:
    """A model and what is known of it.

    Attributes:
        name: what the user wrote, or the name the model object carries.
        directory: its files, None for a model object that came without.
        model: the modules; parts are on the meta device, without weights, until `bring` is called for them.
        structure: its blocks and linear layers.
        headers: its tensors as they are, or would be, stored at full precision; empty without a directory.
        tokenizer: given or loaded when first asked for, see `require_tokenizer`.
        loader: what brings parts in, once the first was asked for.
        reader: what makes `headers` of what is really `stored`, weights in `dtype`.
        targets: what becomes of each of `headers` when parts are brought in.
        changed: tensors outside the quantized layers that are not any more what the files have, by name.
    """

    name: str
    directory: Path | None
    model: Any
    structure: Structure
    headers: Mapping[str, StoredTensor] = field(default_factory=dict)
    tokenizer: Any = None
    trust_remote_code: bool = False
    reader: WeightReader = field(default_factory=PlainReader)
    stored: Mapping[str, StoredTensor] = field(default_factory=dict)
    dtype: torch.dtype = torch.bfloat16
    loader: PartLoader | None = None
    targets: Mapping[str, Target] = field(default_factory=dict)
    changed: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        """Class name of the model."""
        return type(self.model).__name__

    @functools.cached_property
    def watched(self) -> Watched:
        """What a forward pass tells of the linear layers."""
        return watch(self.model, [info.name for info in self.structure.linears])

    @functools.cached_property
    def shared_inputs(self) -> dict[str, tuple[str, ...]]:
        """For each linear layer the layers that receive the same input, itself among them."""
        return {name: group for group in self.watched.groups for name in group}

    @functools.cached_property
    def file_names(self) -> dict[str, str | None]:
        """What files call each linear layer, and what else has a matrix; None for parts of a larger tensor."""
        layers = [info.name for info in self.structure.linears]
        layers += [name for name, _ in self.structure.matrices]
        return file_names(self.model, layers, self.targets if self.directory is not None else None)

    @functools.cached_property
    def reads_experts_apart(self) -> bool:
        """Whether transformers finds this model's experts in files that have them one by one."""
        return read_apart(self.model)

    def name_in_files(self, layer: str) -> str:
        """What files call a layer, or would if those had it alone that have it in one tensor with others."""
        before, instead = self._prefix_change
        return self.file_names[layer] or (instead + layer.removeprefix(before) if layer.startswith(before) else layer)

    @functools.cached_property
    def _prefix_change(self) -> tuple[str, str]:
        return prefix_change(self.file_names)

    @property
    def unused_matrices(self) -> list[str]:
        """What the files have a matrix of, and the model's class does not know: vision towers, heads of more tokens."""
        unused = (name for name, target in self.targets.items() if not target.used and name.endswith(".weight"))
        return [name.removesuffix(".weight") for name in unused if len(self.headers[name].shape) == 2]

    @property
    def model_bytes(self) -> int:
        """Bytes of all stored tensors, or of all parameters and buffers if there are no files."""
        if self.headers:
            return sum(stored.nbytes for stored in self.headers.values())
        return sum(tensor.nbytes for tensor in self.model.state_dict().values())

    def stored_dtype(self, layer: str) -> torch.dtype:
        """Dtype in which a layer's weight is stored."""
        stored = self.headers.get(self._file_name(layer)) or self._fused_with(layer)
        if stored is not None:
            return stored.dtype
        weight: torch.Tensor = self.model.get_submodule(layer).weight
        return weight.dtype

    def is_expert(self, layer: str) -> bool:
        """Whether a linear layer belongs to a routed expert."""
        return experts_of(self.model, layer) is not None

    def _file_name(self, layer: str) -> str:
        """What files call a layer's weight, where they have it alone."""
        return f"{self.file_names.get(layer) or layer}.weight"

    def _fused_with(self, layer: str) -> StoredTensor | None:
        """A stored tensor that holds all experts' layers of one kind, a layer's own among them."""
        experts = experts_of(self.model, layer)
        if experts is None:
            return None
        names = (f"{experts_above(layer)}.{name}" for name in experts.fused_names)
        return next((self.headers[name] for name in names if name in self.headers), None)

    def require_tokenizer(self) -> Any:
        """The tokenizer.

        Raises:
            ModelError: there is none, and text was given.
        """
        if self.tokenizer is None and self.directory is not None:
            from transformers import AutoTokenizer

            try:
                self.tokenizer = AutoTokenizer.from_pretrained(self.directory, trust_remote_code=self.trust_remote_code)
            except (OSError, ValueError, KeyError, ImportError) as error:
                raise ModelError(
                    f"no tokenizer could be loaded from {self.directory} ({first_line(error)}); "
                    "put the tokenizer files there or pass calibration data as token ids."
                ) from error
        if self.tokenizer is None:
            raise ModelError(
                "the model came without a tokenizer: pass tokenizer=..., or calibration data as token ids."
            )
        return self.tokenizer

    def load(self) -> None:
        """Read all weights, in the dtype they are stored in; does nothing if they are there.

        Raises:
            ModelError: they cannot be read, are incomplete, or are not numbers.
        """
        for part in (OUTSIDE, *self.structure.blocks):
            self.bring(part)

    def bring(self, part: str) -> None:
        """Read the weights of one block, or of everything outside the blocks; does nothing if they are there.

        Raises:
            ModelError: they cannot be read, are incomplete, or are not numbers.
        """
        self._build()
        if self.loader is None:
            return
        try:
            self.loader.load(part)
        except ModelError as error:
            raise ModelError(f"{self.directory}: {error}") from error.__cause__

    @contextmanager
    def brought(self, part: str) -> Iterator[None]:
        """Have the weights of a block there, or of everything outside the blocks; gone again if they were not before.

        Raises:
            ModelError: as `bring`.
        """
        there = self.directory is None or (self.loader is not None and part in self.loader.present)
        self.bring(part)
        try:
            yield
        finally:
            if not there:
                self.release(part)

    def _build(self) -> None:
        """Make the modules that weights are brought into, once, where there are files."""
        if self.directory is not None and self.loader is None:
            try:
                built = build(self.model.config, self._load_dtype(), trust_remote_code=self.trust_remote_code)
                self._add_generation_config(built)
                self.loader = PartLoader(
                    built, self.structure.blocks, self.targets, self.headers, self.stored, self.reader,
                    self._load_dtype(),
                )  # fmt: skip
            except (OSError, ValueError, RuntimeError) as error:
                raise ModelError(f"{self.directory} cannot be loaded: {first_line(error)}") from error
            self.model = built

    def linears(self, names: Sequence[str], *, keep: bool) -> dict[str, Any]:
        """Linear layers with their weights, of one block or none.

        Args:
            keep: whether they stay in the model; otherwise they are read from the files alone, where these have them
                under their own names, and nothing else of the block is.

        Raises:
            ModelError: as `bring`.
        """
        if not keep and self._read_directly(names):
            read = dict(self._read_linears([self._file_name(name) for name in names]))
            return {name: read[self._file_name(name)] for name in names}
        blocks = {info.block for info in self.structure.linears if info.name in set(names)}
        for part in self.structure.blocks:
            if not keep and part not in blocks:
                self.release(part)
        for block in blocks:
            self.bring(block or OUTSIDE)
        modules = {name: self.model.get_submodule(name) for name in names}
        # What does not stay may be let go of while somebody still works on it.
        return modules if keep else {name: _linear(module.weight.data) for name, module in modules.items()}

    def get_ready(self, names: Sequence[str], *, keep: bool) -> None:
        """Do ahead what `linears` of these would do only once.

        While transformers builds a model, torch's default dtype is another one: for all threads, also for those that
        round what was asked for before.
        """
        if keep or not self._read_directly(names):
            self._build()

    def _read_directly(self, names: Sequence[str]) -> bool:
        """Whether linear layers can be had from the files alone."""
        tied = {info.name for info in self.structure.linears if info.tied}
        as_it_is = self.directory is not None and not tied & set(names)
        return as_it_is and all(self._stored_as_it_is(name) for name in names)

    def _read_linears(self, weights: Sequence[str]) -> Iterator[tuple[str, Any]]:
        headers = {weight: self.headers[weight] for weight in weights}
        for name, tensor in self.reader.read_all(headers, self.stored, self.dtype):
            if bad := not_finite(tensor):
                raise ModelError(f"{self.directory}: weight {name} has {bad} values that are NaN or infinite.")
            yield name, _linear(tensor.to(self._load_dtype()))

    def _stored_as_it_is(self, layer: str) -> bool:
        """Whether files have the weight of a linear layer under its own name, and nothing is done to it on loading."""
        name, stored = f"{layer}.weight", self._file_name(layer)
        target = self.targets.get(stored)
        if target is None or any(kept in name for kept in self.model._get_dtype_plan(self._load_dtype())):  # noqa: SLF001 - see `PartLoader`
            return False
        if target.alone:
            return target == Target(name, alone=True)
        # Experts that the model keeps in one tensor are taken out of it as they were stored.
        shape = tuple(self.model.get_submodule(layer).weight.shape)
        return self.is_expert(layer) and self.headers[stored].shape == shape

    def release(self, part: str) -> None:
        """Let go of the weights of a block that can be read again."""
        if self.loader is not None:
            self.loader.release(part)

    def _load_dtype(self) -> torch.dtype:
        """What transformers takes for `dtype="auto"`: what the config says, else what the files have."""
        told = getattr(self.model.config, "dtype", None)
        stored = (header.dtype for header in self.headers.values() if header.dtype.is_floating_point)
        return told if isinstance(told, torch.dtype) else next(stored, self.dtype)

    def _add_generation_config(self, model: Any) -> None:
        from transformers import GenerationConfig

        assert self.directory is not None
        if model.can_generate() and (self.directory / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(self.directory)

    def untie(self, layers: Iterable[str]) -> None:
        """Give layers whose weight is also the input embedding a weight of their own."""
        for name in layers:
            linear = self.model.get_submodule(name)
            linear.weight = nn.Parameter(linear.weight.detach().clone(), requires_grad=False)
            self.model.config.tie_word_embeddings = False

    def other_tensors(self, layers: set[str], *, own_names: bool = True) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor that is not the weight of one of these layers, see `auto_round.model.others`."""
        return other_tensors(self, layers, own_names=own_names)


def open_model(
    model: str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    registry: Registry | None = None,
) -> OpenModel:
    """Open a model by everything its config and the headers of its files tell; no weight is read before `load`.

    Args:
        registry: whose formats may read a model that is quantized already; the process-wide one if None.

    Raises:
        ModelError: it cannot be found or understood, or its files are damaged.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    directory = locate(model, revision)
    stored = read_headers(directory)
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
        with BUILDING, torch.device("meta"):
            bare = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError, AttributeError) as error:
        raise ModelError(
            f"{directory} is no causal language model that transformers can build: {first_line(error)}"
        ) from error
    reader = _reader(directory, config, registry)
    dtype = getattr(config, "dtype", None)
    dtype = dtype if isinstance(dtype, torch.dtype) else torch.bfloat16
    headers = reader.plain(stored, dtype)
    try:
        targets = find_targets(bare, headers)
    except ModelError as error:
        raise ModelError(f"{directory}: {error}") from None
    split_experts(bare)
    structure = find_structure(bare)
    return OpenModel(
        os.fspath(model), directory, bare, structure, headers, tokenizer, trust_remote_code, reader, stored, dtype,
        targets=targets,
    )  # fmt: skip


def _reader(directory: Path, config: Any, registry: Registry | None) -> WeightReader:
    """What reads the weights of a checkpoint; its config forgets that they were quantized.

    Raises:
        ModelError: they are, in a way that no installed plugin reads.
    """
    quantized = getattr(config, "quantization_config", None)
    if quantized is None:
        return PlainReader()
    described = quantized if isinstance(quantized, dict) else quantized.to_dict()
    reader = (registry or default_registry()).weight_reader(described)
    if reader is None:
        method = described.get("quant_method", "unknown")
        raise ModelError(
            f"{directory} is quantized already (method {method}), which no installed plugin reads; "
            "start from the original model."
        )
    del config.quantization_config
    return reader


def wrap_model(model: nn.Module, tokenizer: Any = None) -> OpenModel:
    """A model object that is already in memory. Its weights are changed in place when it is quantized.

    Raises:
        ModelError: it wraps a model of transformers, or has weights on the meta device, or that are not numbers.
    """
    from transformers import PreTrainedModel

    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps; its files would have other names
    if any(p.is_meta for p in model.parameters()):
        raise ModelError("the model has weights on the meta device; load it, or pass its path.")
    inner = next((m for m in model.modules() if isinstance(m, PreTrainedModel)), model)
    if inner is not model:
        raise ModelError(
            f"a {type(model).__name__} wraps a {type(inner).__name__}, and files would have its own names of things: "
            "merge what it adds, and pass the model itself."
        )
    name = str(getattr(getattr(model, "config", None), "name_or_path", "") or type(model).__name__)
    _check_finite(name, model)
    split_experts(model)
    return OpenModel(name, None, model.eval().requires_grad_(False), find_structure(model), tokenizer=tokenizer)


def _check_finite(name: str, model: nn.Module) -> None:
    for tensor_name, tensor in model.state_dict().items():
        if bad := not_finite(tensor):
            raise ModelError(f"weight {tensor_name} of {name} has {bad} values that are NaN or infinite.")


def _linear(weight: torch.Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear
