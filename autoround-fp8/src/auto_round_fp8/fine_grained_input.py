# SPDX-License-Identifier: Apache-2.0
"""Fine-grained FP8 checkpoints as input: each weight decoded a row of blocks at a time as it is read from the file.

What is held is the decoded weight of one layer and one row of blocks of codes, never the codes of the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from auto_round.data_type.float8 import float8_values
from auto_round.errors import ModelError
from auto_round.model.reader import Slices, StoredFiles, WeightReader
from auto_round.model.source import StoredTensor

__all__ = ["FineGrainedInput"]

SCALES = ("weight_scale_inv", "weight_scale", "activation_scale", "input_scale")
"""What such checkpoints keep beside a weight."""

CODES = (torch.float8_e4m3fn, torch.float8_e5m2)

ROWS = 128
"""Rows decoded at a time where one scale serves the whole weight."""


@dataclass(frozen=True)
class FineGrainedInput(WeightReader):
    """How the weights of such a checkpoint become plain ones.

    Attributes:
        block: (rows, inputs) that share a scale; None for one scale per weight.
    """

    block: tuple[int, int] | None

    @classmethod
    def of(cls, quantization_config: Mapping[str, Any]) -> FineGrainedInput | None:
        """The reader for a `quantization_config` of config.json, None if it is another format's.

        Raises:
            ModelError: it is this format, but its blocks make no sense.
        """
        if quantization_config.get("quant_method") != "fp8":
            return None
        size = quantization_config.get("weight_block_size")
        if size is None:
            return cls(None)
        if not isinstance(size, list | tuple) or len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size):
            raise ModelError(f"weight_block_size must be two positive numbers, not {size!r}.")
        return cls((size[0], size[1]))

    def plain(self, stored: Mapping[str, StoredTensor], dtype: torch.dtype) -> Mapping[str, StoredTensor]:
        """Everything but the scales; weights that have some in the dtype of the model."""
        headers = {}
        for name, header in stored.items():
            if self.scale_name(name, stored) is not None:
                headers[name] = dataclasses.replace(header, dtype=dtype)
            elif not self.belongs_to_weight(name):
                headers[name] = header
        return headers

    def read(self, name: str, files: StoredFiles, dtype: torch.dtype) -> torch.Tensor:
        scales = self.scale_name(name, files.names)
        if scales is None:
            return files.tensor(name)
        return self.decoded(name, files.slices(name), lambda: files.tensor(scales), dtype)

    def belongs_to_weight(self, name: str) -> bool:
        """Whether a stored tensor is no parameter of the model, but a scale of one."""
        return name.rpartition(".")[2] in SCALES

    def scale_name(self, weight_name: str, stored: Collection[str]) -> str | None:
        """The name of the scales of a weight among the stored names, None for a tensor that is stored plainly."""
        layer, _, last = weight_name.rpartition(".")
        if last != "weight":
            return None
        return next((n for n in (f"{layer}.{scale}" for scale in SCALES[:2]) if n in stored), None)

    def decoded(
        self, name: str, codes: Slices, read_scales: Callable[[], torch.Tensor], dtype: torch.dtype
    ) -> torch.Tensor:
        """The weight [out_features, in_features] that codes and scales stand for; the product is rounded once.

        Args:
            name: of the weight, for messages.
            codes: in the file.
            read_scales: float32, [ceil(out_features / rows), ceil(in_features / inputs)], or a single one.
            dtype: of the result.

        Raises:
            ModelError: shapes that do not fit each other, codes that are no 8-bit floats, NaN or infinite values.
        """
        shape, scales = codes.get_shape(), read_scales()
        if len(shape) != 2 or not scales.dtype.is_floating_point:
            raise ModelError(
                f"{name} is stored as {shape} with scales of {scales.dtype}, which is no fine-grained FP8."
            )
        rows, cols = shape
        spread, step = self._spread(name, scales.float(), rows, cols)
        if not bool(torch.isfinite(spread).all()):
            raise ModelError(f"the scales of {name} hold NaN or infinite values.")
        out = torch.empty(rows, cols, dtype=dtype)
        for index, start in enumerate(range(0, rows, step)):
            part = codes[start : start + step]
            if part.dtype not in CODES:
                raise ModelError(f"{name} is stored as {part.dtype}, not as an 8-bit float.")
            values = float8_values(part).mul_(spread[min(index, len(spread) - 1)])
            if not bool(torch.isfinite(values).all()):
                raise ModelError(f"{name} holds NaN or infinite values in rows {start} to {start + len(part) - 1}.")
            out[start : start + step] = values
        return out

    def _spread(self, name: str, scales: torch.Tensor, rows: int, cols: int) -> tuple[torch.Tensor, int]:
        """A factor for each input of each row of blocks, float32 [blocks down, 1 or in_features], and their height."""
        if scales.numel() == 1:
            return scales.reshape(1, 1), ROWS
        if self.block is None:
            raise ModelError(f"{name} has {scales.numel()} scales, but its checkpoint says nothing of blocks.")
        m, n = self.block
        wanted = (-(-rows // m), -(-cols // n))
        if scales.shape != wanted:
            raise ModelError(
                f"{name} is {rows} by {cols}, which in blocks of {m} by {n} has {wanted[0]} by {wanted[1]} scales, "
                f"but {' by '.join(map(str, scales.shape))} are stored."
            )
        return scales.repeat_interleave(n, dim=1)[:, :cols], m
