# SPDX-License-Identifier: Apache-2.0
"""Attention with its backward pass, for some queries at a time; torch's own kernel for CPUs takes about twice as long.

With Q [L, d] a head's queries, K [S, d] and V [S, e] the keys and values that it reads, and M 0 where a query may look
and minus infinity where it may not,

    P = softmax(scale Q K^T + M),    O = P V

for some rows of Q at a time, and for no more columns of K than those rows may see: a causal mask leaves about half.
Nothing of P is kept. Keys are scaled once, for they are used again. The backward pass makes P anew and has, with * and
sums by element and row,

    dV = P^T dO,    dP = dO V^T,    dS = P * (dP - sum(P * dP)),    dQ = scale dS K,    dK = scale dS^T Q

(Dao et al. 2022, arXiv:2205.14135, sections 3.1 and B.2). Queries of all heads that read the same keys share a product.

Where a processor multiplies matrices of bfloat16 in instructions of their own, torch's kernel for the forward pass
takes half as long as this one, and only the backward pass is computed here: it needs nothing but what went in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

__all__ = ["attend"]

ROWS = 64
"""Queries of a head at a time."""

SCORES = 1 << 20
"""Elements of P at a time, for each thread: 2 MiB in bfloat16, which caches hold."""

SPARSE = 0.2
"""Part of the keys that queries see on average, up to which leaving out the others saves more than a faster kernel."""


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, seen: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """Attention, differentiable once in the first three.

    Args:
        query: [batch, heads, L, d].
        key: [batch, readers, S, d], each for as many heads one after another as there are heads to a reader.
        value: [batch, readers, S, e].
        seen: which keys each query may look at, at least one, bool [L, S]; None if the n-th query at the first n.

    Returns:
        [batch, heads, L, e] in the dtype of the query.
    """
    answer: torch.Tensor = _RowsOfAttention.apply(query, key, value, seen, scale)
    return answer


def _torch_is_faster(query: torch.Tensor, value: torch.Tensor, seen: torch.Tensor | None) -> bool:
    """In the forward pass, on this processor.

    Its kernel is for values as wide as queries, and computes what a mask hides, if that is not causal.
    """
    # Of a newer torch than is needed otherwise.
    told: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    if query.dtype != torch.bfloat16 or query.shape[-1] != value.shape[-1] or not told.get("amx_bf16"):
        return False
    return seen is None or int(seen.sum()) > SPARSE * seen.numel()


@dataclass(frozen=True, eq=False)
class _Part:
    """Some rows of queries.

    Attributes:
        rows: which.
        columns: of the keys that any of them may see.
        hidden: of these, those that some of the rows may not see.
        bias: 0 or minus infinity for each row and each of those.
    """

    rows: slice
    columns: slice
    hidden: slice
    bias: torch.Tensor


def _causal(queries: int, keys: int, dtype: torch.dtype) -> Iterator[_Part]:
    bias = torch.full((ROWS, ROWS), float("-inf"), dtype=dtype).triu_(1)
    for rows in _split(queries, ROWS):
        columns = slice(0, min(rows.stop, keys))
        hidden = slice(min(rows.start, keys), columns.stop)
        yield _Part(rows, columns, hidden, bias[: rows.stop - rows.start, : hidden.stop - hidden.start])


def _masked(seen: torch.Tensor, dtype: torch.dtype) -> Iterator[_Part]:
    for rows in _split(len(seen), ROWS):
        some = seen[rows]
        columns = _span(some.any(0))
        unseen = ~some[:, columns]
        hidden = _span(unseen.any(0))
        bias = torch.zeros_like(unseen[:, hidden], dtype=dtype).masked_fill_(unseen[:, hidden], float("-inf"))
        yield _Part(rows, columns, hidden, bias)


def _parts(query: torch.Tensor, key: torch.Tensor, seen: torch.Tensor | None) -> list[_Part]:
    found = _causal(query.shape[2], key.shape[2], query.dtype) if seen is None else _masked(seen, query.dtype)
    return list(found)


def _span(true: torch.Tensor) -> slice:
    """From the first to the last that is true."""
    at = true.nonzero()
    return slice(int(at[0]), int(at[-1]) + 1) if len(at) else slice(0, 0)


class _RowsOfAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, seen: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.seen, ctx.scale = seen, scale
        if _torch_is_faster(query, value, seen):
            # A causal mask is named because the kernel skips what that hides.
            return F.scaled_dot_product_attention(
                query, key, value, seen, is_causal=seen is None, scale=scale, enable_gqa=True
            )
        batch, heads, length, _ = query.shape
        parts = _parts(query, key, seen)
        # As models go on with it: heads after tokens.
        output = query.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)
        for (q, answer), (k, v) in _together((query, output), (key, value)):
            keys, values = k.flatten(0, 1) * scale, v.flatten(0, 1)
            for part in parts:
                p = _probabilities(_rows(q, part, len(keys)), _columns(keys, part), part)
                _put(answer[..., part.rows, :], torch.bmm(p, _columns(values, part)))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        parts = _parts(query, key, ctx.seen)
        found = [torch.empty_like(x) for x in ctx.saved_tensors]
        for (q, do, dq), (k, v, dk, dv) in _together((query, gradient, found[0]), (key, value, *found[1:])):
            keys, values = k.flatten(0, 1) * ctx.scale, v.flatten(0, 1)
            dk_sum = dv_sum = None
            for part in reversed(parts):  # under a causal mask the last one sees all keys, and begins the sums
                rows, d = _rows(q, part, len(keys)), _rows(do, part, len(keys))
                some_keys = _columns(keys, part)
                p = _probabilities(rows, some_keys, part)
                dp = torch.bmm(d, _columns(values, part).transpose(1, 2))
                ds = torch._softmax_backward_data(dp, p, -1, p.dtype)  # noqa: SLF001 - what softmax itself calls
                _put(dq[..., part.rows, :], torch.bmm(ds, some_keys))
                dk_sum = _added(dk_sum, torch.bmm(ds.transpose(1, 2), rows), part, keys.shape[1])
                dv_sum = _added(dv_sum, torch.bmm(p.transpose(1, 2), d), part, keys.shape[1])
            assert dk_sum is not None
            assert dv_sum is not None
            _put(dk, dk_sum.mul_(ctx.scale))
            _put(dv, dv_sum)
        return (*found, None, None)


def _together(
    of_queries: Sequence[torch.Tensor], of_keys: Sequence[torch.Tensor]
) -> Iterator[tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """As many samples and readers at a time as caches hold scores of.

    Args:
        of_queries: [samples, heads, L, ...].
        of_keys: [samples, readers, S, ...].

    Yields:
        views of parts of them, the former as [samples, readers, heads that read the same keys, L, ...].
    """
    (_, heads, queries), (samples, readers, keys) = of_queries[0].shape[:3], of_keys[0].shape[:3]
    by_reader = [x.unflatten(1, (readers, heads // readers)) for x in of_queries]
    size = SCORES * torch.get_num_threads() // (heads // readers * min(ROWS, queries) * keys)
    for some in _split(samples, size // readers):
        for which in _split(readers, size):
            yield [x[some, which] for x in by_reader], [x[some, which] for x in of_keys]


def _split(count: int, size: int) -> Iterator[slice]:
    size = max(1, size)
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _rows(x: torch.Tensor, part: _Part, readers: int) -> torch.Tensor:
    """Queries of a part, or what belongs to them, one matrix for each reader, [readers, heads * rows, ...]."""
    return x[..., part.rows, :].reshape(readers, -1, x.shape[-1])


def _columns(x: torch.Tensor, part: _Part) -> torch.Tensor:
    """The keys or values of a part, [readers, columns, ...].

    Of a view in bfloat16 every product would make a copy of its own.
    """
    some = x[:, part.columns]
    return some.contiguous() if x.dtype == torch.bfloat16 else some


def _put(place: torch.Tensor, matrices: torch.Tensor) -> None:
    """Copy what was computed for each reader to where it belongs."""
    place.copy_(matrices.view(place.shape))


def _added(total: torch.Tensor | None, matrices: torch.Tensor, part: _Part, keys: int) -> torch.Tensor:
    """What the keys of a part get, [readers, columns, ...], added to a sum over parts, [readers, keys, ...].

    It is of many small numbers: float32.
    """
    if total is None:
        if matrices.shape[1] == keys:
            return matrices.float()
        total = matrices.new_zeros(len(matrices), keys, matrices.shape[-1], dtype=torch.float32)
    total[:, part.columns].add_(matrices)
    return total


def _probabilities(rows: torch.Tensor, keys: torch.Tensor, part: _Part) -> torch.Tensor:
    """P of the queries of a part, [readers, heads * rows, columns], from those and scaled keys."""
    scores = torch.bmm(rows, keys.transpose(1, 2))
    if part.bias.numel():
        scores.view(len(keys), -1, *part.bias.shape[:1], scores.shape[-1])[..., part.hidden].add_(part.bias)
    return torch.softmax(scores, -1)
