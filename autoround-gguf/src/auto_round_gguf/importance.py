# SPDX-License-Identifier: Apache-2.0
"""How much the inputs of each layer matter: from a file where one is named, else as observed; and into a file."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from auto_round.errors import CalibrationError
from auto_round_gguf.imatrix import ImportanceFile, read_imatrix
from auto_round_gguf.names import split_expert
from auto_round_gguf.settings import imatrix_to_read

if TYPE_CHECKING:
    from auto_round.schemes import LayerPlace

__all__ = ["LayerImportance", "importance_file"]


@dataclass
class LayerImportance:
    """What is known of one layer's inputs.

    Attributes:
        tensor: GGUF name of its weight, without `.weight`.
        expert: which part of that tensor it is, None for all of it.
        given: from a file, float32 [in_features], None without.
        observed: over calibration, float32 [in_features]; None before the layer is done, and where a file was used.
    """

    tensor: str
    expert: int | None = None
    given: torch.Tensor | None = None
    observed: torch.Tensor | None = None

    @classmethod
    def of_layer(cls, tensor: str, place: LayerPlace) -> LayerImportance:
        """What is known when work is planned.

        Raises:
            CalibrationError: the file cannot be read, or is another model's.
        """
        found = cls(tensor, split_expert(place.name)[1])
        path = imatrix_to_read()
        if path is None:
            return found
        means = _read(path, path.stat().st_mtime_ns if path.exists() else 0).means.get(f"{tensor}.weight")
        if means is None:
            return found
        inputs = place.shape[1]
        if means.shape[-1] % inputs or (found.expert is None and means.numel() != inputs):
            raise CalibrationError(
                f"{path} is another model's: {tensor} has {inputs} inputs, and {means.numel()} values there."
            )
        # The older kind of file has no shapes: experts lie one behind the other.
        rows = means.reshape(-1, inputs)
        if found.expert is not None and found.expert >= len(rows):
            raise CalibrationError(f"{path} is another model's: {tensor} has {len(rows)} experts there.")
        found.given = rows[found.expert or 0]
        return found

    def settle(self, observed: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
        """What to search with; remembers what calibration observed."""
        if self.given is not None:
            return self.given.to(device)
        self.observed = None if observed is None else observed.detach().cpu()
        return observed


def importance_file(layers: Iterable[LayerImportance], experts: int) -> ImportanceFile:
    """What was observed of layers, as a file holds it.

    Sums of squares, of a number of tokens that is not known here: counts are 1, and 0 for experts that saw none. It is
    the proportions within a layer that quantizers use.
    """
    found = ImportanceFile({}, chunks=1)
    for layer in layers:
        if layer.observed is None:
            continue
        name = f"{layer.tensor}.weight"
        if layer.expert is None:
            found.means[name], found.counts[name] = layer.observed, torch.ones(1)
            continue
        if name not in found.means:
            found.means[name] = torch.zeros(experts, len(layer.observed))
            found.counts[name] = torch.zeros(experts)
        found.means[name][layer.expert] = layer.observed
        found.counts[name][layer.expert] = 1.0
    return found


@functools.lru_cache(maxsize=1)
def _read(path: Path, _changed: int) -> ImportanceFile:
    return read_imatrix(path)
