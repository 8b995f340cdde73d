# SPDX-License-Identifier: Apache-2.0
"""Whether a data type left alone what it was given: PyTorch counts the writes into every tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from auto_round.errors import ContractError

if TYPE_CHECKING:
    import torch

    from auto_round.data_type.record import DataType

__all__ = ["WrittenIntoError", "check_untouched", "writes_into"]


class WrittenIntoError(ContractError):
    """A data type wrote into its input.

    Attributes:
        data_type: the one that did.
    """

    def __init__(self, data_type: DataType, what: str) -> None:
        self.data_type = data_type
        super().__init__(
            f"data type {data_type.name} writes into {what}, which is not its own; it has to work on a copy."
        )


def writes_into(tensor: torch.Tensor) -> int:
    """How often a tensor, or a view of it, was written into; what is not counted (inference mode) is 0."""
    return 0 if tensor.is_inference() else tensor._version  # noqa: SLF001 - the only place where the count is


def check_untouched(tensor: torch.Tensor, writes: int, data_type: DataType, what: str) -> None:
    """Refuse a data type that wrote into a tensor.

    Args:
        writes: what `writes_into` said before.
        what: the tensor, for the message.

    Raises:
        WrittenIntoError: it did.
    """
    if writes_into(tensor) != writes:
        raise WrittenIntoError(data_type, what)
