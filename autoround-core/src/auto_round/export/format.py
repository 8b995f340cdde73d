# SPDX-License-Identifier: Apache-2.0
"""An output format: whether it can hold a plan, and the exporter that writes one run of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from auto_round.data_type import Codes
    from auto_round.model.opened import OpenModel
    from auto_round.plan import LayerSpec, Plan

__all__ = ["Exporter", "LayerResult", "OutputFormat"]


@dataclass(frozen=True)
class LayerResult:
    """A finished layer.

    Attributes:
        layer: what was planned for it.
        codes: its stored form, or None for a data type that has none.
        weight: what the codes decode to, [out_features, in_features] in the weight's dtype.
    """

    layer: LayerSpec
    codes: Codes | None
    weight: torch.Tensor


class Exporter(Protocol):
    """Writes one run of one format into a directory that exists and is empty."""

    def add(self, result: LayerResult) -> None:
        """Take a finished layer; it may be written at once and need not be kept."""

    def finish(self) -> None:
        """Write everything else. The directory is complete when this returns."""


class OutputFormat(ABC):
    """A kind of checkpoint or file.

    Attributes:
        name: what `--format` takes.
        summary: one line for listings.
    """

    name: str
    summary: str = ""

    def refuses(self, layer: LayerSpec) -> str | None:
        """Why this format cannot hold a layer that is planned to be quantized, or None; asked before any work."""
        return None

    def refuses_plan(self, plan: Plan) -> list[str]:
        """What stands against the plan as a whole (a mixture, an architecture); asked before any work."""
        return []

    def scale_dtype(self, layer: LayerSpec) -> torch.dtype | None:
        """The dtype in which this format stores the layer's scales; None where the data type alone decides."""
        return None

    @abstractmethod
    def start(self, plan: Plan, model: OpenModel, directory: Path) -> Exporter:
        """Begin to write into `directory`."""
