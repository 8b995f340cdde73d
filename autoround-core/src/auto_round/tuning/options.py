# SPDX-License-Identifier: Apache-2.0
"""How to tune."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from auto_round.errors import UnknownOptionError

if TYPE_CHECKING:
    import torch

__all__ = ["RECIPES", "TuningOptions", "is_count"]

RECIPES = ("published", "best")

LOW_BITS_FACTOR = 2.0
LONG_RUN = 1000
LOW_BITS = 3

JOINED = 2
"""Samples of the improved recipe's calibration that make one: texts are longer in use than calibration can afford."""

FEW_BITS = 2
LESS_FOR_FEW_BITS = 0.6
"""Compensation of so few bits stays only where its loss is below this part of that of steps."""

SMALLER_FOR_SCALES = 0.3
"""Steps of scales relative to those of the rounding, in the improved recipe."""


@dataclass(frozen=True)
class TuningOptions:
    """Defaults are the published recipe, section 4 of Cheng et al. 2023, arXiv:2309.05516, from a better start.

    Attributes:
        iters: steps per block; 0 only rounds.
        lr: step size; None means 1/iters, or 2/iters for layers of at most 3 bits in runs of 1000 steps and more.
        minmax_lr: step size of min_scale and max_scale; None means `lr`, in the improved recipe a third of it.
        batch_size: samples per forward pass.
        gradient_accumulate_steps: forward and backward passes per step.
        enable_minmax_tuning: learn the range of each group too, not only the rounding.
        enable_quanted_input: feed each block the output of the quantized blocks before it.
        search: start from the scale a data type finds under the importance of each input channel, not from the minimum
            and maximum of each group. The published recipe, which `search=False` is, does so only without iterations;
            starting steps there too measured better on every model and width.
        seed: decides the order of samples.
        recipe: "published", or "best", which takes up to three times as long: channels are made equal first
            (`auto_round.tuning.equalise`), layers are also asked to be right one by one (`own_error`), samples are made
            longer (`CalibrationTokens.joined`), scales take smaller steps, and weights make up for what was rounded
            before them (`compensation`); a block keeps that unless steps do better, at two bits unless they come near.
            Static activations have their range chosen (`clipping`).
        e2e_iters: steps of all blocks together after those of each, towards the original model's next-token
            distributions (`auto_round.tuning.end_to_end`); the whole model and all that is learnt for it, about 24
            bytes a weight, are in memory then. They compute in the model's dtype, or in float32.
        low_memory: keep no rounded weight from the forward pass to the backward pass but round it again, and give freed
            memory back at once: slower, with the same result. For the published recipe.
        enable_torch_compile: compile what data types do to every number, `auto_round.data_type.kernels`. Worth its time
            where layers are large: that is some 20 seconds, once for a data type. Needs a C++ compiler, and a CPU.
        compute_dtype: dtype blocks run in; None means the model's own, float32 for a float16 model on a CPU.
    """

    iters: int = 200
    lr: float | None = None
    minmax_lr: float | None = None
    batch_size: int = 8
    gradient_accumulate_steps: int = 1
    enable_minmax_tuning: bool = True
    enable_quanted_input: bool = True
    search: bool = True
    seed: int = 42
    recipe: str = "published"
    e2e_iters: int = 0
    # Not compared: who runs out of memory goes on with it.
    low_memory: bool = field(default=False, compare=False)
    # Compared: sums come out different in their last digits.
    enable_torch_compile: bool = False
    compute_dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise UnknownOptionError(f"recipe must be {' or '.join(RECIPES)}, not {self.recipe!r}.")
        if self.low_memory and self.improved:
            raise UnknownOptionError(
                "low_memory is for recipe published: best needs the rounded weights for what each layer gets wrong."
            )
        if self.low_memory and self.e2e_iters:
            raise UnknownOptionError("low_memory and e2e_iters exclude each other: those steps need the whole model.")
        least_values = {"seed": 0, "iters": 0, "e2e_iters": 0, "batch_size": 1, "gradient_accumulate_steps": 1}
        for name, least in least_values.items():
            value = getattr(self, name)
            if not is_count(value, least):
                raise UnknownOptionError(f"{name} must be a whole number of at least {least}, not {value!r}.")
        for name in ("lr", "minmax_lr"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and 0 < value < math.inf):
                raise UnknownOptionError(f"{name} must be a positive number, not {value!r}.")
        if self.compute_dtype is not None and not getattr(self.compute_dtype, "is_floating_point", False):
            raise UnknownOptionError(f"compute_dtype must be a torch.dtype of floats, not {self.compute_dtype!r}.")

    @property
    def improved(self) -> bool:
        """Whether the improved recipe is asked for."""
        return self.recipe == "best"

    @property
    def compensates(self) -> bool:
        """Whether weights make up for what rounding changed before them (`auto_round.tuning.compensation`).

        Signed steps from there ended no better than from plain rounding; so they begin at plain rounding, and a block
        keeps what is better.
        """
        return self.improved and self.search

    def trust(self, bits: int) -> float:
        """At which part of the loss that steps reach, or less, a block of so few bits keeps compensation.

        At two bits blocks that were compensated left models worse than their loss says, on every model that was tried;
        benchmarks/accuracy.md has the figures.
        """
        return LESS_FOR_FEW_BITS if bits <= FEW_BITS else 1.0

    @property
    def joined(self) -> int:
        """How many samples are tuned on as one."""
        return JOINED if self.improved else 1

    def step_size(self, bits: int) -> float:
        """First step of `v`; it falls linearly to 0."""
        if self.lr is not None:
            return self.lr
        factor = LOW_BITS_FACTOR if self.iters >= LONG_RUN and bits <= LOW_BITS else 1.0
        return factor / self.iters

    def minmax_step_size(self, bits: int) -> float:
        """First step of `min_scale` and `max_scale`."""
        if self.minmax_lr is not None:
            return self.minmax_lr
        return self.step_size(bits) * (SMALLER_FOR_SCALES if self.improved else 1.0)


def is_count(value: object, least: int) -> bool:
    """Whether this is a whole number of at least so much, and neither True nor False."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
