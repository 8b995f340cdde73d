# SPDX-License-Identifier: Apache-2.0
"""Calibration data as one model can take it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch

from auto_round.calibration.loading import load_calibration
from auto_round.calibration.tokens import CalibrationTokens
from auto_round.errors import CalibrationError, ModelError

if TYPE_CHECKING:
    from auto_round.model.opened import OpenModel

__all__ = ["sample_length", "tokens_for"]

DEFAULT_SEQLEN = 2048


def sample_length(model: OpenModel, seqlen: int | None) -> int:
    """Tokens of a sample: what is asked for, else 2048, or what the model can take if that is less.

    Raises:
        CalibrationError: more is asked for than it can take.
    """
    longest = getattr(model.model.config, "max_position_embeddings", None)
    if seqlen is not None and longest and seqlen > longest:
        raise CalibrationError(f"seqlen={seqlen} is longer than the {longest} positions the model knows.")
    return seqlen or min(DEFAULT_SEQLEN, longest or DEFAULT_SEQLEN)


def tokens_for(
    model: OpenModel, dataset: Any, *, nsamples: int, seqlen: int | None, pack: bool, joined: int
) -> CalibrationTokens:
    """The tokens of a data set.

    Args:
        dataset, nsamples, pack: as in `load_calibration`.
        seqlen: as in `sample_length`.
        joined: samples that become one, as far as the model can take that.

    Raises:
        CalibrationError: there are too few, or they are not this model's.
        ModelError: text, and no tokenizer.
    """
    tokenizer = None
    if not isinstance(dataset, torch.Tensor):
        try:
            tokenizer = model.require_tokenizer()
        except ModelError:
            if _is_text(dataset):
                raise
    length = sample_length(model, seqlen)
    tokens = load_calibration(dataset, tokenizer, nsamples=nsamples, seqlen=length, pack=pack)
    vocabulary = model.model.get_input_embeddings().weight.shape[0]
    if int(tokens.input_ids.max()) >= vocabulary:
        raise CalibrationError(
            f"the calibration data has token id {int(tokens.input_ids.max())}, and the model knows {vocabulary} "
            "tokens: was it made with another tokenizer?"
        )
    return tokens.joined(joined, getattr(model.model.config, "max_position_embeddings", None))


def _is_text(dataset: Any) -> bool:
    if dataset is None or isinstance(dataset, str | os.PathLike):
        return True
    return isinstance(dataset, list | tuple) and any(isinstance(item, str) for item in dataset)
