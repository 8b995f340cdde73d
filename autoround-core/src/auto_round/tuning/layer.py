# SPDX-License-Identifier: Apache-2.0
"""One layer while it is being quantized: its weight, what its data type is offered, what is learnt."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from auto_round.data_type.activation import INPUT_PREFIX, ActivationQuantizer, SharedInput
from auto_round.data_type.codes import Codes
from auto_round.data_type.grouping import group_count, group_shape
from auto_round.data_type.ranges import group_ranges
from auto_round.data_type.results import ResultError, rounded_of
from auto_round.data_type.untouched import check_untouched, writes_into
from auto_round.model.finite import not_finite
from auto_round.plan import LayerSpec
from auto_round.schemes import GroupSize
from auto_round.tuning.own_error import OwnErrors
from auto_round.tuning.result import LayerResult
from auto_round.tuning.thrifty import Piece, pieces_of, rounded_again

__all__ = ["TunableLinear"]

DEFAULT_SCALE_DTYPE = torch.float16


class TunableLinear(nn.Module):
    """Computes with the quantized weight, so that the loss feels it; the learnt parameters are its only parameters.

    Attributes:
        layer: what was planned.
        weight: what is rounded, [out_features, in_features], never written to: the original weight, or what
            `start_from` was given.
        wanted: what the rounded weight should compute like, the original weight unless `start_from` was told better.
        learnt: `v`, `min_scale`, `max_scale` as far as the data type learns them, float32.
        tuned: bounds of those.
        fixed: what else the data type is offered.
        pieces: what it is rounded in where it keeps nothing from the forward pass to the backward pass, else none.
        own_errors: what is told of its own error while it learns, if anything is.
    """

    def __init__(
        self,
        linear: Any,
        layer: LayerSpec,
        compute_dtype: torch.dtype,
        device: torch.device,
        fixed: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        assert layer.data_type is not None
        # `data`, and not `detach`, has a count of writes of its own: neighbours in one tensor of experts do not count.
        weight: torch.Tensor = linear.weight.data.to(device)
        self.layer = layer
        self.data_type = layer.data_type
        self.weight = weight.T.contiguous() if layer.transposed else weight
        self.wanted = self.original = self.weight
        self._writes = writes_into(self.weight)
        self.bias = None if linear.bias is None else linear.bias.detach().to(device, compute_dtype)
        self.compute_dtype = compute_dtype
        self.learnt = nn.ParameterDict()
        self.pieces: list[Piece] = []
        self.own_errors: OwnErrors | None = None
        self.activation: ActivationQuantizer | SharedInput | None = None
        self._frozen: Mapping[str, torch.Tensor] = {}
        if layer.activation is not None and not layer.static_activations:
            self.activation = ActivationQuantizer(layer.activation, layer.scheme)
        self._shared: dict[str, torch.Tensor] = {}
        self.tuned = self.data_type.tuned
        self._accepted = self.data_type.offers
        self.fixed = self._fixed_offers() if fixed is None else dict(fixed)
        self._source: Callable[[], torch.Tensor] | None = None
        self._kept: Codes | torch.Tensor | None = None

    def _fixed_offers(self) -> dict[str, Any]:
        scheme = self.layer.scheme
        offers: dict[str, Any] = {"scale_dtype": self.layer.scale_dtype or DEFAULT_SCALE_DTYPE}
        # Always said, learnt or not: a function's own default need not be neutral.
        neutral = torch.ones(group_count(self.layer.shape, scheme.group_size), device=self.weight.device)
        offers |= {"v": 0.0, "min_scale": neutral, "max_scale": neutral}
        return {name: value for name, value in offers.items() if name in self._accepted}

    def tell_range(self) -> None:
        """Find the range of each group of the original weight, which never changes, once and not at every step."""
        if {"tensor_min", "tensor_max"} <= self._accepted:
            low, high = group_ranges(self.weight, self.layer.scheme.group_size)
            self.fixed |= {"tensor_min": low, "tensor_max": high}

    def freeze_activations(self, low: torch.Tensor, high: torch.Tensor) -> None:
        """Fix the scale of static activations, float32 scalars."""
        assert self.layer.activation is not None
        self.take_frozen(self.layer.activation.freeze(low, high, self.layer.scheme))

    def take_frozen(self, frozen: Mapping[str, torch.Tensor]) -> None:
        """Fix the scale of static activations to what `freeze` returned for them."""
        assert self.layer.activation is not None
        self._frozen = frozen
        self.activation = ActivationQuantizer(self.layer.activation, self.layer.scheme, frozen)

    def share_with(self, mates: Sequence[TunableLinear]) -> None:
        """Give all of these layers, itself among them, what they must have in common."""
        shared = dict(self.data_type.share([mate.weight for mate in mates], self.layer.scheme))
        for mate in mates:
            mate._shared = shared  # noqa: SLF001 - its own class
            mate.fixed.update(shared)
        self.share_input(mates)

    def share_input(self, mates: Sequence[TunableLinear]) -> None:
        """Quantize one input once for all of these layers, itself the first of them."""
        if isinstance(self.activation, ActivationQuantizer) and len(mates) > 1:
            self.activation = SharedInput(self.activation, len(mates))
            for mate in mates:
                mate.activation = self.activation

    def search(self, imatrix: torch.Tensor | None) -> None:
        """Start from the data type's searched scale, if it has a search."""
        if self.data_type.searches:
            scale_dtype = self.layer.scale_dtype or DEFAULT_SCALE_DTYPE
            found = self.data_type.search(
                self.weight, self.layer.scheme, imatrix=imatrix, scale_dtype=scale_dtype, **self._shared
            )
            self.fixed.update(found)
            if self.data_type.tuned_after_search is not None:
                self.tuned = self.data_type.tuned_after_search
        if imatrix is not None and "imatrix" in self._accepted:
            self.fixed["imatrix"] = imatrix

    def check_weight(self) -> None:
        """Refuse a data type that has written into the original weight.

        Raises:
            WrittenIntoError: it has.
        """
        check_untouched(self.weight, self._writes, self.data_type, f"the weight of layer {self.layer.name}")

    def start_from(self, weight: torch.Tensor, wanted: torch.Tensor) -> None:
        """Round another weight from now on, under the scales there are; both shaped and typed as the original."""
        self.check_weight()
        self.weight, self.wanted = weight, wanted
        self._writes = writes_into(weight)

    def make_learnable(self, minmax: bool, *, thrifty: bool = False) -> None:
        """Add the parameters the data type learns, at their neutral values.

        Args:
            minmax: those of the scales, too.
            thrifty: round again in the backward pass, see `auto_round.tuning.thrifty`.
        """
        shape, group_size = self.layer.shape, self.layer.scheme.group_size
        for name in self.tuned:
            if name == "v":
                start = torch.zeros(group_shape(shape, group_size), device=self.weight.device)
            elif minmax:
                start = torch.ones(group_count(shape, group_size), device=self.weight.device)
            else:
                continue
            self.learnt[name] = nn.Parameter(start, requires_grad=not thrifty)
        self.pieces = pieces_of(self) if thrifty else []

    @property
    def learning(self) -> list[Mapping[str, nn.Parameter]]:
        """What has gradients, those that get them together together: what is learnt, or pieces of it."""
        return [piece.learnt for piece in self.pieces] or [dict(self.learnt)]

    @property
    def rows_alone(self) -> bool:
        """Whether all that its data type is offered lies on rows: no scale of several layers, no importance."""
        return not self._shared and "imatrix" not in self.fixed

    @property
    def members(self) -> tuple[TunableLinear, ...]:
        """The layers of the model that this is: itself, or those of a stack."""
        return (self,)

    def lie_in(self, weight: torch.Tensor, fixed: Mapping[str, Any], source: Callable[[], torch.Tensor]) -> None:
        """Become a part of a stack: views of what the stack has, which computes the quantized weight from now on."""
        self.check_weight()
        self.weight, self.fixed, self._source = weight, dict(fixed), source
        self._writes = writes_into(weight)

    def stand_alone(self, learnt: Mapping[str, torch.Tensor]) -> None:
        """Leave the stack with the part of what was learnt that is its own."""
        self._source = None
        self.learnt = nn.ParameterDict({name: nn.Parameter(part, requires_grad=False) for name, part in learnt.items()})

    @torch.no_grad()
    def clamp_learnt(self) -> None:
        """Keep the learnt parameters within their bounds."""
        for name, parameter in self.learnt.items():
            bounds = self.tuned[name]
            if bounds is not None:
                parameter.clamp_(*bounds)

    def quantized_weight(self, learnt: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
        """The weight as it would be loaded, [out_features, in_features], differentiable in what is learnt.

        Args:
            learnt: where it is not this layer that learns.
        """
        offers = {**self.fixed, **(learnt or self.learnt)}
        return self._rounded(self.weight, self.layer.scheme.group_size, offers)

    def rounded_from(self, weight: torch.Tensor) -> torch.Tensor:
        """What another weight would be rounded to, shaped and typed alike."""
        return self._rounded(weight, self.layer.scheme.group_size, self.fixed)

    def rounded_alone(self, column: torch.Tensor, offers: Mapping[str, Any]) -> torch.Tensor:
        """What a column of the weight is rounded to by itself, [rows, 1].

        Args:
            column: [rows, 1].
            offers: what differs from group to group, for the groups of this column.
        """
        return self._rounded(column, -1, {**self.fixed, **offers})

    def _rounded(self, weight: torch.Tensor, group_size: GroupSize | None, offers: Mapping[str, Any]) -> torch.Tensor:
        scheme = self.layer.scheme
        identity: dict[str, Any] = {
            "bits": scheme.bits,
            "group_size": group_size,
            "super_bits": scheme.super_bits,
            "super_group_size": scheme.super_group_size,
            "data_type": self.data_type.name,
        }
        named = {name: value for name, value in identity.items() if name in self._accepted and value is not None}
        result = self.data_type.quant_tensor(weight, **named, **offers)
        rounded = rounded_of(result, weight, self.data_type, self.layer.name)
        learnt = [name for name, offer in offers.items() if isinstance(offer, torch.Tensor) and offer.requires_grad]
        if learnt and torch.is_grad_enabled() and not rounded.requires_grad:
            told = f"gives no gradient for {' or '.join(learnt)}: round straight through, or do not ask for it."
            raise ResultError(self.data_type, told)
        return rounded

    def rounded_piece(self, piece: Piece) -> torch.Tensor:
        """What some rows are rounded to, differentiable in what is learnt for them."""
        return self._rounded(piece.weight, self.layer.scheme.group_size, {**piece.fixed, **piece.learnt})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.pieces and torch.is_grad_enabled():
            return rounded_again(self, self.as_seen(x))
        return self.compute(x, self.quantized_weight() if self._source is None else self._source())

    def as_seen(self, x: torch.Tensor) -> torch.Tensor:
        """An input as the quantized model sees it."""
        return x if self.activation is None else self.activation(x)

    def compute(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The answer with a quantized weight that is there already."""
        x = self.as_seen(x)
        weight = weight.to(self.compute_dtype)
        if self.own_errors is not None and torch.is_grad_enabled():
            self.own_errors.note(self, x, weight)
        return F.linear(x, weight, self.bias)

    @torch.no_grad()
    def keep(self, learnt: Mapping[str, torch.Tensor] | None = None) -> None:
        """Settle for what is learnt now, whatever is learnt later: its codes are all that is kept of it.

        Args:
            learnt: where it is not this layer that learns.
        """
        learnt = dict(self.learnt) if learnt is None else learnt
        changing = {parameter.untyped_storage().data_ptr() for parameter in learnt.values()}

        def settled(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.clone() if tensor.untyped_storage().data_ptr() in changing else tensor

        stored = self._stored(learnt)
        if isinstance(stored, torch.Tensor):
            self._kept = settled(stored)
        else:
            self._kept = dataclasses.replace(stored, tensors={n: settled(t) for n, t in stored.tensors.items()})

    def forget(self) -> None:
        """Keep nothing any more."""
        for layer in self.members:
            layer._kept = None  # noqa: SLF001 - its own class

    def _stored(self, learnt: Mapping[str, torch.Tensor]) -> Codes | torch.Tensor:
        """Codes, or the weight itself of a data type that has none."""
        if not self.data_type.encodes:
            return self.quantized_weight(learnt).to(self.weight.dtype)
        offers = {**self.fixed, **{name: parameter.detach() for name, parameter in learnt.items()}}
        return self.data_type.encode(self.weight, self.layer.scheme, **offers)

    def let_go(self) -> None:
        """Learn no more, and forget what was learnt: it is finished."""
        self.learnt, self.pieces = nn.ParameterDict(), []

    @torch.no_grad()
    def finish(self) -> LayerResult:
        """The layer's final codes, those that were kept if any were, and the weight they decode to.

        Raises:
            ResultError: that is not numbers.
        """
        frozen = self._frozen
        stored = self._stored(dict(self.learnt)) if self._kept is None else self._kept
        weight = stored if isinstance(stored, torch.Tensor) else self.data_type.decode(stored)
        if bad := not_finite(weight):  # that of the model was looked at when it was read
            told = f"rounds the weight of {self.layer.name} to {bad} values that are NaN or infinite."
            raise ResultError(self.data_type, told)
        if isinstance(stored, torch.Tensor):
            return LayerResult(self.layer, None, stored, frozen)
        inputs = {INPUT_PREFIX + name: tensor for name, tensor in frozen.items()}
        return LayerResult(
            self.layer, dataclasses.replace(stored, tensors={**stored.tensors, **inputs}), weight, frozen
        )
