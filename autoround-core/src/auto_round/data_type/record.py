# SPDX-License-Identifier: Apache-2.0
"""The record of a data type: its function and what else it can answer. Core asks; it never tests a name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from auto_round.data_type.register import accepted_offers
from auto_round.errors import ContractError

if TYPE_CHECKING:
    import torch

    from auto_round.data_type.codes import Codes
    from auto_round.schemes import QuantizationScheme

__all__ = ["Bounds", "DataType", "FunctionDataType", "Kernel", "Runtime"]

Bounds = tuple[float, float] | None
"""Interval a learnt parameter is kept in, or None where it is free."""


@dataclass(frozen=True)
class Runtime:
    """One place where files of a data type load, as data.

    Attributes:
        name: the runtime, as people call it.
        minimum: first version that loads it.
        format: the output format it reads.
        devices: where it runs there.
        limits: what it takes, field of a scheme to the values it may have; a field that is absent is free.
        multiple: both sides of a weight have to be a multiple of this.
        fuses: whether it has models of its own: it computes layers that share an input as one, which then need one
            scheme, and reads experts one by one also where the model's own files have them in one tensor.
        experts: whether it reads the layers of routed experts as they are stored, one by one.
        note: one sentence for whoever meets a limit: what would work instead.
        needs: what has to be done or installed there first, "" if nothing; said whenever a plan counts on this record.
    """

    name: str
    minimum: str
    format: str
    devices: tuple[str, ...] = ("cpu", "cuda")
    limits: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    multiple: int = 1
    fuses: bool = False
    note: str = ""
    needs: str = ""
    experts: bool = True


class Kernel(Protocol):
    """Computes with a weight that stays in few bits.

    Attributes:
        most_rows: inputs of more rows than this are faster, or only possible, with the decoded weight.
    """

    most_rows: int

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Inputs [rows, in_features] times the weight, [rows, out_features], in the dtype of the codes."""


class DataType:
    """One way to store a tensor in few bits.

    The least a data type has is a name and `quant_tensor`. Everything else has a default that says "I cannot".

    Attributes:
        name: the registered name, a wire format: once published, its bits never change.
        summary: one line for listings.
        tuned: the parameters worth learning, by name (of `v`, `min_scale`, `max_scale`), with their bounds. A
            subclass that annotates it writes `Mapping[str, Bounds]`, not `ClassVar`: an object may have its own.
        tuned_after_search: the same where tuning starts from what `search` found, a scale that may also have to grow;
            None if there is no difference.
        scale_dtype: dtype of scales where no format decides it; None for float16.
        runtimes: where its files load.
        encodes: whether `encode` and `decode` exist, so that formats other than `fake` can hold it.
        searches: whether `search` exists.
    """

    name: str
    summary: str = ""
    tuned: Mapping[str, Bounds] = {"v": None, "min_scale": (0.0, 1.0), "max_scale": (0.0, 1.0)}
    tuned_after_search: Mapping[str, Bounds] | None = None
    scale_dtype: torch.dtype | None = None
    runtimes: tuple[Runtime, ...] = ()
    encodes: ClassVar[bool] = False
    searches: ClassVar[bool] = False

    def quant_tensor(self, tensor: torch.Tensor, *args: Any, **offers: Any) -> tuple[torch.Tensor, Any, Any]:
        """Quantize and dequantize, differentiable in `v`, `min_scale` and `max_scale`; see `register_dtype`.

        Subclasses name the offers they take instead of `args` and `offers`, in any order, so that a misspelt one is
        found when the plugin is loaded. All but `tensor` is passed by keyword.
        """
        raise NotImplementedError

    @property
    def offers(self) -> frozenset[str]:
        """The keywords `quant_tensor` takes."""
        return accepted_offers(self.quant_tensor)

    def supports(self, scheme: QuantizationScheme, shape: tuple[int, int]) -> str | None:
        """Why a weight of this shape (out_features, in_features) cannot be stored under this scheme, or None."""
        return None

    def statistics(self, scheme: QuantizationScheme) -> frozenset[str]:
        """What of a layer's input must be observed over calibration before `search`: a subset of {"imatrix"}.

        The range of inputs that static activations need is observed without being asked for.
        """
        return frozenset()

    def share(self, weights: Sequence[torch.Tensor], scheme: QuantizationScheme) -> Mapping[str, torch.Tensor]:
        """What layers that receive the same input must have in common, because runtimes fuse them.

        Core finds such layers by watching a forward pass (q/k/v, gate/up, an expert's w1/w3, whatever they are called)
        and calls this once for each set of them that has one scheme, a set of one included.

        Args:
            weights: [out_features, in_features] each.

        Returns:
            offers to hand to `search`, `quant_tensor` and `encode` of each of them, e.g. {"global_scale": scalar}.
        """
        return {}

    def stacks(self, scheme: QuantizationScheme, shape: tuple[int, int]) -> bool:
        """Whether matrices of this shape may be quantized on top of each other, along out_features, by one call.

        True promises: `quant_tensor` of the whole, offers put on top of each other too (along their first dimension),
        gives what it gives for each matrix by itself, bit for bit, and so do the gradients of what is learnt. Rows
        that share no scale with rows of another matrix keep it; `grouping.groups_stack` says where groups do. Core then
        tunes the experts of a block with few calls instead of one for each layer.
        """
        return False

    def freeze(self, low: torch.Tensor, high: torch.Tensor, scheme: QuantizationScheme) -> Mapping[str, torch.Tensor]:
        """Fix the scale of static activations once their range is known; asked of an activation's data type.

        Args:
            low, high: least and largest input observed over calibration, float32 scalars, low <= 0 <= high.
            scheme: the layer's scheme; its `act_*` fields are the ones that matter.

        Returns:
            offers to hand to `quant_tensor` with every activation from then on; the codes of the layer keep them under
            their names with `input_` before, a packing stores them, and loading hands them back.
        """
        return {"tensor_min": low, "tensor_max": high}

    def search(
        self,
        weight: torch.Tensor,
        scheme: QuantizationScheme,
        *,
        imatrix: torch.Tensor | None,
        scale_dtype: torch.dtype,
        **shared: torch.Tensor,
    ) -> Mapping[str, torch.Tensor]:
        """Find a better start than a group's minimum and maximum.

        Args:
            weight: [out_features, in_features].
            scheme: the layer's scheme.
            imatrix: importance of each input channel, float32 [in_features], or None for equal importance.
            scale_dtype: dtype in which the format keeps scales; what is found is found with that rounding.
            shared: what `share` returned.

        Returns:
            offers to hand to `quant_tensor` and `encode` from then on, e.g. {"init_scale": [groups, 1]}. Never worse
            than without them, measured by the importance-weighted squared error.
        """
        return {}

    def encode(self, weight: torch.Tensor, scheme: QuantizationScheme, **offers: Any) -> Codes:
        """The stored form of a weight [out_features, in_features], under the same offers as `quant_tensor`.

        `decode(encode(w, ...))` equals the first result of `quant_tensor(w, ...)` bit for bit.
        """
        raise ContractError(f"data type {self.name} has no stored form (no encode): only format fake can write it.")

    def decode(self, codes: Codes) -> torch.Tensor:
        """The weight [out_features, in_features] in `codes.dtype` that the codes stand for."""
        raise ContractError(f"data type {self.name} has no stored form (no decode).")

    def kernel(self, codes: Codes) -> Kernel | None:
        """What computes with these codes as they are, on the device they are on, or None where nothing does.

        It is used where a user asks for it: sums in another order and scales in another dtype are allowed here, unlike
        in `decode`.
        """
        return None

    def bits_per_weight(self, scheme: QuantizationScheme, shape: tuple[int, int]) -> float:
        """Bits a weight of this shape costs on average, scales and zero points included."""
        return float(scheme.bits)

    def describe(self) -> Mapping[str, Any]:
        """What people should know without reading the code, as plain data that JSON can hold; for spec cards.

        `name` and `summary` are there; beyond them whatever tells the grid, the scale and the stored form apart.
        """
        return {"name": self.name, "summary": self.summary or (self.__doc__ or "").strip()}


class FunctionDataType(DataType):
    """A data type that is one decorated function."""

    def __init__(self, name: str, function: Callable[..., Any], offers: frozenset[str]) -> None:
        self.name = name
        self.summary = next(iter((function.__doc__ or "").strip().splitlines()), "")
        self.tuned = {p: bounds for p, bounds in DataType.tuned.items() if p in offers}
        self._function = function
        self._offers = offers

    @property
    def offers(self) -> frozenset[str]:
        return self._offers

    def quant_tensor(self, tensor: torch.Tensor, *args: Any, **offers: Any) -> tuple[torch.Tensor, Any, Any]:
        result: tuple[torch.Tensor, Any, Any] = self._function(tensor, *args, **offers)
        return result
