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
    from auto_round.tuning.result import LayerResult

__all__ = ["LayerImportance", "importance_file"]


@dataclass
class LayerImportance:
    """What is known of one layer's inputs.

    Attributes:
        tensor: GGUF name of its weight, without `.weight`.
        expert: which part of that tensor it is, None for all of it.
        given: from a file, float32 [in_features], None without.
    """

    tensor: str
    expert: int | None = None
    given: torch.Tensor | None = None

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
        """What to search with."""
        return observed if self.given is None else self.given.to(device)


def importance_file(layers: Iterable[tuple[LayerImportance, LayerResult]], experts: int) -> ImportanceFile:
    """What was observed of layers, as a file holds it: means of squares, and the tokens they are of."""
    found = ImportanceFile({}, chunks=1)
    for layer, result in layers:
        if layer.given is not None or result.importance is None or not result.tokens:
            continue
        name = f"{layer.tensor}.weight"
        mean, count = result.importance.cpu() / result.tokens, float(result.tokens)
        if layer.expert is None:
            found.means[name], found.counts[name] = mean, torch.tensor([count])
            continue
        if name not in found.means:
            found.means[name] = torch.zeros(experts, len(mean))
            found.counts[name] = torch.zeros(experts)
        found.means[name][layer.expert] = mean
        found.counts[name][layer.expert] = count
    return found


@functools.lru_cache(maxsize=1)
def _read(path: Path, _changed: int) -> ImportanceFile:
    return read_imatrix(path)
