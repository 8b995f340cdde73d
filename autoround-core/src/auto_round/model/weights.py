# SPDX-License-Identifier: Apache-2.0
"""Weights from files into modules, a part of the model at a time.

transformers decides which stored tensor becomes which parameter: it renames, stacks and splits them for many models.
Its own loader is called for one part after the other, so that a part is exactly what loading everything gives.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn

from auto_round.errors import ModelError
from auto_round.model.experts import split_experts
from auto_round.model.finite import not_finite
from auto_round.model.reader import PlainReader, StoredFiles, WeightReader
from auto_round.torch_defaults import BUILDING

if TYPE_CHECKING:
    from auto_round.model.source import StoredTensor

__all__ = ["OUTSIDE", "PartLoader", "Target", "build", "find_targets", "first_line"]

OUTSIDE = ""
"""The part that is everything outside the blocks."""


def build(config: Any, dtype: torch.dtype, *, trust_remote_code: bool) -> Any:
    """The modules of a model: parameters on the meta device, buffers, which files may not have, where they compute."""
    from accelerate import init_empty_weights  # type: ignore[import-untyped]
    from transformers import AutoModelForCausalLM

    with BUILDING, init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class Target:
    """What becomes of a stored tensor.

    Attributes:
        name: of the parameter or buffer that it becomes, or becomes a part of; of one of them, if it becomes several.
        alone: whether it becomes that as it is.
        used: whether the model has such a parameter or buffer.
    """

    name: str
    alone: bool
    used: bool = True


def find_targets(model: Any, headers: Mapping[str, StoredTensor]) -> dict[str, Target]:
    """What becomes of each stored tensor of a model, as transformers builds it; no weight is needed for it.

    Raises:
        ModelError: a parameter that no stored tensor becomes, or a tensor of another shape.
    """
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = _conversions(model)
    renamings = [m for m in mapping if isinstance(m, WeightRenaming)]
    converters = [m for m in mapping if isinstance(m, WeightConverter)]
    prefix, expected = model.base_model_prefix, model.state_dict()
    targets: dict[str, Target] = {}
    for name, header in headers.items():
        found, converted = rename_source_key(name, renamings, converters, prefix, expected)
        if found not in expected and name in expected:
            found = name
        targets[name] = Target(found, converted is None, found in expected)
        if converted is None and found in expected and header.shape != tuple(expected[found].shape):
            raise ModelError(
                f"{name} is stored as {list(header.shape)}, and the model's config describes "
                f"{list(expected[found].shape)}."
            )
    becomes = {target.name for target in targets.values()}
    _check_missing(model, expected.keys() - becomes - _made_beside(converters, becomes, expected))
    return targets


def _check_missing(model: Any, missing: Iterable[str]) -> None:
    """Refuse a model some of whose parameters no stored tensor becomes."""
    ignored = [re.compile(p) for p in getattr(model, "_keys_to_ignore_on_load_missing", None) or ()]
    tied = getattr(model, "all_tied_weights_keys", {})
    parameters = {name for name, _ in model.named_parameters()}
    names = sorted(n for n in missing if n in parameters and n not in tied and not any(p.search(n) for p in ignored))
    if names:
        raise ModelError(f"the files lack {len(names)} weights of {type(model).__name__}, {names[0]} first.")


def _copy(block: nn.Module) -> nn.Module:
    """A block with modules of its own, and the model's config: who changes that means all blocks."""
    configs = [module.config for module in block.modules() if hasattr(module, "config")]
    return copy.deepcopy(block, {id(config): config for config in configs})


class PartLoader:
    """Brings the blocks of a model in, and lets go of them again.

    Attributes:
        model: as `build` returned it; blocks that are there have their experts taken apart.
        present: the parts that are there.
    """

    def __init__(
        self,
        model: Any,
        blocks: tuple[str, ...],
        targets: Mapping[str, Target],
        headers: Mapping[str, StoredTensor],
        stored: Mapping[str, StoredTensor],
        reader: WeightReader,
        dtype: torch.dtype,
    ) -> None:
        """Args:
        blocks: names of the blocks.
        targets, headers, stored, reader, dtype: as in `OpenModel`.
        """
        self.model = model
        self._blocks = blocks
        self._headers, self._stored, self._reader, self._dtype = headers, stored, reader, dtype
        self._names = self._sort_names(targets)
        self.present: set[str] = set()
        # As transformers fills them; between times a block stands there in our form, on the meta device.
        self._templates = {block: model.get_submodule(block) for block in blocks}
        for block, template in self._templates.items():
            self._put(block, self._apart(_copy(template)))

    def load(self, part: str) -> None:
        """Bring a part in; nothing happens if it is there.

        Raises:
            ModelError: its tensors cannot be read, are incomplete, of another shape, or are not numbers.
        """
        if part not in self.present:
            with BUILDING:  # or parameters that are set here would be made empty there
                self._load(part)

    def _load(self, part: str) -> None:
        if part:
            self._put(part, _copy(self._templates[part]))
        try:
            mismatched = self._convert(self._names[part])
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"{part or 'the model'} cannot be loaded: {first_line(error)}") from error
        if part:
            self._apart(self.model.get_submodule(part))
        else:
            self.model.tie_weights()
            self.model.requires_grad_(False)
        self._check(part, mismatched)
        self.present.add(part)

    def release(self, part: str) -> None:
        """Let go of the weights of a part."""
        if part not in self.present:
            return
        self.present.remove(part)
        if part:
            self.model.get_submodule(part).to("meta")
            return
        gone: dict[int, nn.Parameter] = {}
        blocks = tuple(f"{block}." for block in self._blocks)
        for name, parameter in list(self.model.named_parameters(remove_duplicate=False)):
            if not name.startswith(blocks):
                module, _, attribute = name.rpartition(".")
                empty = nn.Parameter(parameter.to("meta"), requires_grad=False)
                setattr(self.model.get_submodule(module), attribute, gone.setdefault(id(parameter), empty))

    def _put(self, block: str, module: nn.Module) -> None:
        parent, _, attribute = block.rpartition(".")
        setattr(self.model.get_submodule(parent), attribute, module)

    @staticmethod
    def _apart(block: nn.Module) -> nn.Module:
        split_experts(block)
        return block.eval().requires_grad_(False)

    def _sort_names(self, targets: Mapping[str, Target]) -> dict[str, list[str]]:
        """Names of stored tensors by the part they belong to."""
        sorted_names: dict[str, list[str]] = {part: [] for part in (OUTSIDE, *self._blocks)}
        stem = self._blocks[0].rpartition(".")[0] + "."
        for name, target in targets.items():
            inner = target.name.removeprefix(stem)
            block = stem + inner.partition(".")[0] if inner != target.name else OUTSIDE
            sorted_names[block if block in sorted_names else OUTSIDE].append(name)
        return sorted_names

    def _convert(self, names: list[str]) -> list[str]:
        """Have transformers put stored tensors where they belong; returns those whose shape does not fit."""
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        # How transformers itself tells which parameters of a model stay in float32.
        plan = self.model._get_dtype_plan(self._dtype)  # noqa: SLF001
        config = LoadStateDictConfig(dtype=self._dtype, dtype_plan=plan, weight_mapping=_conversions(self.model))
        with StoredFiles(self._stored) as files, _quietly():
            if isinstance(self._reader, PlainReader):
                tensors: dict[str, Any] = {name: files.slices(name) for name in names}
            else:
                wanted = {name: self._headers[name] for name in names}
                tensors = dict(self._reader.read_all(wanted, self._stored, self._dtype))
            info, _ = convert_and_load_state_dict_in_model(self.model, tensors, config)
        return sorted(str(key) for key in info.mismatched_keys)

    def _check(self, part: str, mismatched: list[str]) -> None:
        if mismatched:
            raise ModelError(f"the stored shape of {mismatched[0]} is not the one the model's config describes.")
        _check_missing(self.model, (name for name, parameter in self._own_parameters(part) if parameter.is_meta))
        for name, parameter in self._own_parameters(part):
            if not parameter.is_meta and (bad := not_finite(parameter)):
                raise ModelError(f"weight {name} has {bad} values that are NaN or infinite.")

    def _own_parameters(self, part: str) -> Iterator[tuple[str, torch.Tensor]]:
        if part:
            for name, parameter in self.model.get_submodule(part).named_parameters():
                yield f"{part}.{name}", parameter
            return
        inside = tuple(f"{block}." for block in self._blocks)
        for name, parameter in self.model.named_parameters():
            if not name.startswith(inside):
                yield name, parameter


def first_line(error: BaseException) -> str:
    """What an error of somebody else says, in a line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]


def _made_beside(converters: Iterable[Any], found: Collection[str], expected: Collection[str]) -> set[str]:
    """Parameters that come out of a conversion beside the one that stored tensors are sorted under."""
    made: set[str] = set()
    for converter in converters:
        first, *others = converter.target_patterns
        ending = first.replace("*", "").lstrip("^").rstrip("$")
        for name in found if others else ():
            if name.endswith(ending):
                stem = name.removesuffix(ending)
                made |= {n for other in others for n in [stem + other.rstrip("$")] if n in expected}
    return made


def _conversions(model: Any) -> list[Any]:
    """What transformers does to stored tensors of this model; each call has its own, as they collect tensors."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    conversions: list[Any] = get_model_conversion_mapping(model, None, None)
    return conversions


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep back the bar that transformers shows for every part."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
