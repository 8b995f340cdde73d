# SPDX-License-Identifier: Apache-2.0
"""Calibration text that is never read twice: told again in words of the original model's own.

Steps of a whole model learn the few texts that they see by heart. What the original model says of a text holds for any
text, though: when a sample is read again, some of its tokens are what the model drew at these places the time before,
from the distributions that the loss had asked it for anyway. That is scheduled sampling as it is done where all places
are computed at once (Bengio et al. 2015, arXiv:1506.03099; Mihaylova, Martins 2019, arXiv:1906.07651), with the teacher
for the one who speaks, as in Liu et al. 2023, arXiv:2305.17888, who have it write whole texts first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from auto_round.calibration import CalibrationTokens
from auto_round.tuning.divergence import exponentials, some_tokens
from auto_round.tuning.signround import batches

__all__ = ["Reading", "RetoldText", "readings"]

REPLACED = 0.5
"""How many of a sample's tokens are the model's own when it is read again."""


@dataclass(frozen=True, eq=False)
class Reading:
    """A batch, and all that is left to chance in it.

    Attributes:
        samples: which ones, int64 [batch].
        replaced: where they may have other tokens, bool [batch, seqlen].
        chances: which token is drawn at each place, float32 [batch, seqlen] in [0, 1).
    """

    samples: torch.Tensor
    replaced: torch.Tensor
    chances: torch.Tensor

    def split(self, count: int) -> Iterator[Reading]:
        """Parts of at most so many samples."""
        parts = (tensor.split(count) for tensor in (self.samples, self.replaced, self.chances))
        return (Reading(*part) for part in zip(*parts, strict=True))


def readings(tokens: CalibrationTokens, batch_size: int, seed: int) -> Iterator[Reading]:
    """Batches without end, every sample once before any twice; the same ones for the same seed, on every machine."""
    generator = torch.Generator().manual_seed(seed)
    for samples in batches(len(tokens), batch_size, generator):
        chances = torch.rand(2, len(samples), tokens.input_ids.shape[1], generator=generator)
        yield Reading(samples, chances[0] < REPLACED, chances[1])


class RetoldText:
    """Samples, and what the model said in place of each of their tokens when they were read last.

    Attributes:
        tokens: the samples as they are.
        drawn: int64 [samples, seqlen], the tokens themselves where nothing was said yet; written to in place.
    """

    def __init__(self, tokens: CalibrationTokens) -> None:
        self.tokens = tokens
        self.drawn = tokens.input_ids.clone()

    def read(self, reading: Reading) -> torch.Tensor:
        """Token ids to feed, int64 [batch, seqlen]."""
        ids = self.tokens.input_ids[reading.samples]
        return torch.where(reading.replaced, self.drawn[reading.samples], ids)

    def hear(self, reading: Reading, logits: torch.Tensor) -> None:
        """Draw the token after each real one from what the model said about it.

        Args:
            logits: of the token after each real one, in the order of the mask, [..., vocabulary].
        """
        real = self.tokens.mask[reading.samples]
        rows = logits.flatten(0, -2)
        chances = reading.chances[real].to(rows.device).unsqueeze(-1)
        said = self.tokens.input_ids[reading.samples]
        said[real] = torch.cat([_drawn(rows[some], chances[some]) for some in some_tokens(rows)]).to(said.device)
        self.drawn[reading.samples, 1:] = said[:, :-1]


def _drawn(logits: torch.Tensor, chances: torch.Tensor) -> torch.Tensor:
    """The first index up to which the probabilities add up to more than a part of their sum, int64 [tokens]."""
    up_to = exponentials(logits)[1].cumsum(-1)
    found = torch.searchsorted(up_to, chances * up_to[:, -1:], right=True)
    return found.squeeze(-1).clamp_(max=logits.shape[-1] - 1)
