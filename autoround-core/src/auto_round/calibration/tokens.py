# SPDX-License-Identifier: Apache-2.0
"""The end of the road: samples of token ids, padded on the right, and which of the ids are real."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from auto_round.errors import CalibrationError

__all__ = ["CalibrationTokens"]


@dataclass(frozen=True, eq=False)
class CalibrationTokens:
    """What calibration runs on.

    Attributes:
        input_ids: token ids, int64 [samples, seqlen].
        mask: bool [samples, seqlen], True where the token is real, False where it is padding (always on the right).
        source: one line that says where the samples came from.
        pieces: how many samples make each of these.

    Raises:
        CalibrationError: the two tensors are not of these types and of one shape.
    """

    input_ids: torch.Tensor
    mask: torch.Tensor
    source: str
    pieces: int = 1

    def __post_init__(self) -> None:
        """Refuse what the attributes above do not allow."""
        ids, mask = self.input_ids, self.mask
        if ids.dtype != torch.int64 or mask.dtype != torch.bool or ids.ndim != 2 or ids.shape != mask.shape:
            raise CalibrationError(
                "calibration tokens are int64 ids and a bool mask, both [samples, seqlen], "
                f"not {ids.dtype} {tuple(ids.shape)} and {mask.dtype} {tuple(mask.shape)}."
            )

    @classmethod
    def from_samples(cls, samples: Sequence[torch.Tensor], *, pad_id: int, source: str) -> CalibrationTokens:
        """Pad samples on the right to the longest of them.

        Args:
            samples: at least one tensor of token ids, each int64 [length].
            pad_id: the id that fills the rest of a row; the mask is False there.
            source: see the class.
        """
        longest = max(len(sample) for sample in samples)
        input_ids = torch.full((len(samples), longest), pad_id, dtype=torch.int64)
        mask = torch.zeros((len(samples), longest), dtype=torch.bool)
        for row, sample in enumerate(samples):
            input_ids[row, : len(sample)] = sample
            mask[row, : len(sample)] = True
        return cls(input_ids, mask, source)

    def joined(self, pieces: int, longest: int | None) -> CalibrationTokens:
        """Neighbours joined to longer samples, the same tokens in the same order; unchanged where it cannot be done.

        What a model does with a token depends on those before it; errors at places further back than calibration
        reaches were measured to be half as large again as those within.

        Args:
            pieces: how many make one.
            longest: positions the model knows; None, which is unknown, is none to spare.
        """
        count, length = self.input_ids.shape
        fits = longest is not None and pieces * length <= longest
        if pieces == 1 or not fits or count < pieces or not bool(self.mask.all()):
            return self
        rows = count // pieces
        kept = self.input_ids[: rows * pieces].reshape(rows, pieces * length)
        return CalibrationTokens(kept, torch.ones_like(kept, dtype=torch.bool), self.source, pieces)

    def per_batch(self, batch_size: int) -> int:
        """How many of these are fed at a time where a batch is so many samples as they came: one at least."""
        return min(max(1, batch_size // self.pieces), len(self))

    def __len__(self) -> int:
        """Number of samples."""
        return self.input_ids.shape[0]

    def fingerprint(self) -> str:
        """SHA-256 of shape, ids and mask, in hexadecimal; the same on every machine, whatever `source` says."""
        digest = hashlib.sha256(repr(tuple(self.input_ids.shape)).encode())
        # Stated byte order: a run may be resumed on another machine.
        digest.update(self.input_ids.cpu().contiguous().numpy().astype("<i8").tobytes())
        digest.update(self.mask.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()
