# SPDX-License-Identifier: Apache-2.0
"""Whether what a data type's function gives back is what was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from auto_round.errors import ContractError

if TYPE_CHECKING:
    from auto_round.data_type.record import DataType

__all__ = ["ResultError", "rounded_of"]


class ResultError(ContractError):
    """A data type gave back what is no result.

    Attributes:
        data_type: the one that did.
    """

    def __init__(self, data_type: DataType, what: str) -> None:
        self.data_type = data_type
        super().__init__(f"data type {data_type.name} {what}")


def rounded_of(result: Any, tensor: torch.Tensor, data_type: DataType, layer: str) -> torch.Tensor:
    """The rounded tensor of a result `(qdq, scale, zp)`.

    Args:
        tensor: what was to be rounded.
        layer: whose weight that is, for the message.

    Raises:
        ResultError: there are not three, or the first is no tensor of the same shape.
    """
    if not isinstance(result, tuple | list) or len(result) != 3:
        told = f"{len(result)} values" if isinstance(result, tuple | list) else type(result).__name__
        raise ResultError(
            data_type, f"has to return the rounded tensor, scale and zero point; for {layer} it is {told}."
        )
    rounded = result[0]
    if not isinstance(rounded, torch.Tensor) or rounded.shape != tensor.shape:
        told = str(list(rounded.shape)) if isinstance(rounded, torch.Tensor) else type(rounded).__name__
        raise ResultError(data_type, f"rounds the weight of {layer}, {list(tensor.shape)}, to {told}.")
    return rounded
