# SPDX-License-Identifier: Apache-2.0
"""An output format: whether it can hold a plan, and the exporter that writes one run of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    import torch

    from auto_round.model.opened import OpenModel
    from auto_round.model.reader import WeightReader
    from auto_round.plan import CachePlan, LayerSpec, Plan
    from auto_round.plugins import Registry
    from auto_round.tuning.result import CacheResult, LayerResult

__all__ = ["Exporter", "OutputFormat"]


class Exporter(Protocol):
    """Writes one run of one format into a directory that exists and is empty."""

    def add(self, result: LayerResult) -> None:
        """Take a finished layer; it may be written at once and need not be kept."""

    def add_cache(self, result: CacheResult) -> None:
        """Take the scales of an attention layer's keys and values; called if `refuses_cache` had nothing to say."""

    def finish(self) -> None:
        """Write everything else. The directory is complete when this returns."""


class OutputFormat(ABC):
    """A kind of checkpoint or file.

    Attributes:
        name: what `--format` takes.
        summary: one line for listings.
        own_names: whether its files are read under the names of the model's modules, or it finds names itself. Those
            of other formats are read as the model's own files are, under the names that these have.
        joins: whether it writes experts in one tensor where the model's own files have them so; formats without names
            of their own have them one by one.
        takes_apart: whether transformers finds those there that its own model has in one tensor.
        registry: the plugins it may ask for packings; set by the registry that loads the format, None means the
            process-wide one.
    """

    name: str
    summary: str = ""
    own_names: ClassVar[bool] = False
    joins: ClassVar[bool] = False
    takes_apart: ClassVar[bool] = False
    registry: Registry | None = None

    @property
    def experts_found(self) -> bool:
        """Whether its readers find experts there that the model's own files have in one tensor, however it is done."""
        return self.own_names or self.joins or self.takes_apart

    @property
    def plugins(self) -> Registry:
        """The plugins to ask."""
        from auto_round.plugins import default_registry

        return self.registry or default_registry()

    def refuses(self, layer: LayerSpec) -> str | None:
        """Why this format cannot hold a layer that is planned to be quantized, or None; asked before any work."""
        return None

    def refuses_plan(self, plan: Plan) -> list[str]:
        """What stands against the plan as a whole (a mixture, an architecture); asked before any work."""
        return []

    def notes(self, plan: Plan) -> list[str]:
        """What a user should know of such a plan in this format and need not mend; told before any work."""
        return []

    def scale_dtype(self, layer: LayerSpec) -> torch.dtype | None:
        """The dtype in which this format stores the layer's scales; None where the data type alone decides."""
        return None

    def bits_per_weight(self, layer: LayerSpec) -> float:
        """Bits that a weight of a layer takes there on average, scales and zero points included."""
        assert layer.data_type is not None
        return layer.data_type.bits_per_weight(layer.scheme, layer.shape)

    def refuses_cache(self, cache: CachePlan) -> str | None:
        """Why this format cannot tell how keys and values are to be kept, or None; asked before any work."""
        return "it has no place for them"

    def reader(self, quantization_config: Mapping[str, Any]) -> WeightReader | None:
        """What makes a plain model of a checkpoint in this format, so that it can be quantized anew; None if nothing.

        Asked of formats whose `LazyFormat.reads` is the checkpoint's `quant_method`.

        Args:
            quantization_config: the entry of the checkpoint's config.json.
        """
        return None

    @abstractmethod
    def start(self, plan: Plan, model: OpenModel, directory: Path) -> Exporter:
        """Begin to write into `directory`."""
