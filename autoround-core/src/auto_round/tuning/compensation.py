# SPDX-License-Identifier: Apache-2.0
"""Rounding one input after another, the weights of later inputs making up for the errors of earlier ones.

With X the inputs of a layer in the quantized model, a column for each token, and H = X X^T their Gram matrix, an error
d of input j costs least if the weights of every later input k are changed by

    -d U[j, k] / U[j, j],        U^T U = H^-1, U upper triangular

(Frantar et al. 2022, arXiv:2210.17323, sections 3.1 to 3.3). What is approached is not the layer's own weight W but
what is best for the answers W Z of the original model to its own inputs Z,

    W* = W + W (Z - X) X^T H^-1,

least squares, so that a layer makes up for what those before it got wrong. H is damped in both. No data type is asked
for anything but `quant_tensor`: one column is rounded by itself, under the scales that were found for the whole weight.
Where it refuses, or that gives another result than rounding all at once because scales depend on the weight, nothing is
done.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from auto_round.data_type.grouping import group_count
from auto_round.model.finite import not_finite
from auto_round.tuning.layer import TunableLinear

__all__ = ["Inputs", "compensate"]

DAMPING = 0.01
"""Added to the diagonal of a Gram matrix, relative to its mean: the value of Frantar et al."""

COLUMNS = 128
"""Columns after which the rest of the weight is told of their errors, in one product."""

PROBED = 4
"""Rows that are rounded both ways to see whether columns can be rounded by themselves."""


@dataclass
class Inputs:
    """What is collected of a layer's inputs.

    Attributes:
        gram: X X^T, float32 [in_features, in_features].
        shift: (Z - X) X^T, likewise; None where tokens of the two models cannot be told to be the same.
        tokens: how many.
    """

    gram: torch.Tensor
    shift: torch.Tensor | None
    tokens: int


class _Columns:
    """Rounds columns of a weight by themselves, under the scales of the whole."""

    def __init__(self, tunable: TunableLinear) -> None:
        scheme, (rows, columns) = tunable.layer.scheme, tunable.layer.shape
        size = scheme.group_size
        assert isinstance(size, int)
        self._tunable = tunable
        self._width = columns if size <= 0 or size > columns else size
        count = group_count((rows, columns), size)[0]
        self._grouped = {
            name: offer.reshape(rows, count // rows, *offer.shape[1:])
            for name, offer in tunable.fixed.items()
            if count > 1 and isinstance(offer, torch.Tensor) and offer.dim() and offer.shape[0] == count
        }

    def rounded(self, column: torch.Tensor, number: int) -> torch.Tensor:
        """Values [rows, 1] of column `number`, or of its first rows."""
        rows = len(column)
        offers = {name: offer[:rows, number // self._width] for name, offer in self._grouped.items()}
        return self._tunable.rounded_alone(column, offers)

    def agree(self) -> bool:
        """Whether that can be done, and is what rounding the whole weight does."""
        weight = self._tunable.weight
        whole, few = self._tunable.quantized_weight()[:PROBED], weight[:PROBED]
        try:
            self.rounded(few[:, :1], 0)
        except Exception:  # noqa: BLE001 - blocks that a column does not fill, which plugins refuse each in its own way
            return False
        return all(torch.equal(self.rounded(few[:, n : n + 1], n), whole[:, n : n + 1]) for n in range(weight.shape[1]))


@torch.no_grad()
def compensate(tunable: TunableLinear, inputs: Inputs) -> bool:
    """Let a layer round a weight whose later columns make up for the rounding of earlier ones.

    Returns:
        whether it does now; its weight stays where its data type cannot round columns by themselves, where fewer tokens
        than inputs were seen, and where the error over those tokens would not be less.
    """
    layer, weight = tunable.layer, tunable.weight
    plain = isinstance(layer.scheme.group_size, int) and layer.scheme.super_group_size is None
    if not plain or "imatrix" in tunable.fixed or inputs.tokens < weight.shape[1]:
        return False
    columns = _Columns(tunable)
    if not columns.agree():
        return False
    gram = inputs.gram.double()
    dead = gram.diagonal() <= 0
    gram.diagonal().add_(DAMPING * gram.diagonal().mean()).add_(dead.double())
    wanted = weight.float()
    if inputs.shift is not None:
        moved = torch.linalg.solve(gram, (wanted.double() @ inputs.shift.double()).T).T
        wanted = wanted + moved.float()
    found = _walk(wanted, columns, gram, weight.dtype)
    before = _error(tunable.quantized_weight().float() - wanted, inputs.gram)
    if not_finite(found):
        return False
    after = _error(tunable.rounded_from(found).float() - wanted, inputs.gram)
    if after >= before:
        return False
    tunable.start_from(found, wanted.to(weight.dtype))
    return True


def _walk(wanted: torch.Tensor, columns: _Columns, gram: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The weight to be rounded, [rows, columns] in the dtype: each column as it is when its turn comes.

    Inputs that matter most go first, while there are others to make up for them.
    """
    order = gram.diagonal().argsort(descending=True)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram[order][:, order]))
    upper = torch.linalg.cholesky(inverse, upper=True).float()
    rest, found = wanted[:, order].clone(), torch.empty_like(wanted, dtype=dtype)
    numbers = order.tolist()
    for start in range(0, len(numbers), COLUMNS):
        stop = min(start + COLUMNS, len(numbers))
        errors = torch.zeros(len(rest), stop - start, device=rest.device)
        for at in range(start, stop):
            column = rest[:, at : at + 1]
            kept = column.to(dtype)
            found[:, numbers[at] : numbers[at] + 1] = kept
            error = (column - columns.rounded(kept, numbers[at]).float()) / upper[at, at]
            rest[:, at + 1 : stop] -= error * upper[at, at + 1 : stop]
            errors[:, at - start : at - start + 1] = error
        rest[:, stop:] -= errors @ upper[start:stop, stop:]
    return found


def _error(wrong: torch.Tensor, gram: torch.Tensor) -> float:
    return float(((wrong @ gram) * wrong).sum())
