# SPDX-License-Identifier: Apache-2.0
"""Where channels of a block can be scaled without changing what it computes, found by trying.

Norm gains before projections are such a place, and so is an up projection before its down projection, or values before
the output projection of attention. None is known here by name or class: rows of a module are scaled, and what arrives
at the layers behind it is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from auto_round.model.structure import without_numbers
from auto_round.tuning.rescaling import (
    Rescaling,
    columns_of,
    copies_of,
    dims_of,
    put_back,
    rescale,
    rows_of,
    scale_rows,
)

__all__ = ["find_rescalings"]

DIGITS = 256
"""Factors that float32 tells apart with certainty, 1 + n / DIGITS: rows are numbered in this base."""

EXACT = 1e-4
"""How far a channel may be from a multiple of what it was, relative to its size: sums of many terms in float32."""

TRIAL = 3
"""Powers of two from -TRIAL to TRIAL are tried before a place is believed in."""


@torch.no_grad()
def find_rescalings(
    block: nn.Module, run: Callable[[], torch.Tensor], fixed: Callable[[str, str], bool] = lambda _name, _part: False
) -> list[Rescaling]:
    """Every place of a block, in the order of its modules.

    Args:
        block: with weights, in float32; it is as before when this returns.
        run: some tokens through it, always the same ones; returns the block's output.
        fixed: told a module's name and "rows" or "columns", whether those must stay as they are.
    """
    matrices = {name: m for name, m in block.named_modules() if name and dims_of(m) == 2}
    answers: dict[str, Any] = {}
    with _watched(matrices, lambda name, _x, answer: answers.setdefault(name, answer)):
        output = run()
    inputs: dict[str, torch.Tensor] = {}
    with _held(matrices, answers, inputs):
        run()
    probe = _Probe(matrices, answers, inputs, output, run)
    alike: dict[str, list[str]] = {}
    for name, module in block.named_modules():
        # A router that answers with more than a tensor writes no channels.
        if (
            name
            and _can_write(module)
            and isinstance(answers.get(name, output), torch.Tensor)
            and not fixed(name, "rows")
        ):
            alike.setdefault(without_numbers(name), []).append(name)
    found = []
    for names in alike.values():
        found += [
            place
            for place in _places(block, names, probe)
            if not any(fixed(reader, "columns") for reader in place.readers) and _holds(block, place, run, output)
        ]
    order = {name: n for n, (name, _) in enumerate(block.named_modules())}
    return sorted(found, key=lambda place: order[place.writer])


def _can_write(module: nn.Module) -> bool:
    return dims_of(module) in (1, 2) and set(module._parameters) <= {"weight", "bias"}  # noqa: SLF001


@dataclass(frozen=True)
class _Probe:
    """What linear layers are fed while each of them answers as it did the first time, whatever it is fed.

    So a change is seen where it arrives first, and nowhere else.
    """

    matrices: Mapping[str, nn.Module]
    answers: Mapping[str, Any]
    inputs: Mapping[str, torch.Tensor]
    output: torch.Tensor
    run: Callable[[], torch.Tensor]

    def ratios(self, block: nn.Module, factors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
        """By what each channel of each reader changes if rows of writers are scaled.

        Returns:
            for each layer whose input changes at all a factor per channel, [in_features]; None if something changes in
            another way, the block's output included.
        """
        saved = {name: copies_of(block.get_submodule(name)) for name in factors}
        held, seen = dict(self.answers), dict[str, torch.Tensor]()
        for name, by_row in factors.items():
            scale_rows(block.get_submodule(name), by_row)
            if name in held:
                held[name] = held[name] * by_row.to(held[name].device)
        try:
            with _held(self.matrices, held, seen):
                output = self.run()
        finally:
            for name, copies in saved.items():
                put_back(block.get_submodule(name), copies)
        if set(seen) != set(self.inputs) or not _close(output, self.output):
            return None
        changed = {}
        for name, before in self.inputs.items():
            if torch.equal(before, seen[name]):
                continue
            after, ratio = seen[name], _ratio(before, seen[name])
            if ratio is None or after.shape[-1] != columns_of(self.matrices[name]):
                return None
            changed[name] = ratio
        return changed


def _places(block: nn.Module, names: Sequence[str], probe: _Probe) -> Iterator[Rescaling]:
    """The places of writers that are alike, the experts of a block or one module alone, all tried at once."""
    rows = rows_of(block.get_submodule(names[0]))
    names = [name for name in names if rows_of(block.get_submodule(name)) == rows]
    number = torch.arange(rows)
    read: list[dict[str, torch.Tensor]] = []
    # Three digits: two of the row, one of the writer. Most modules fail at the first.
    turns = [number % DIGITS, number // DIGITS] if rows > DIGITS else [number]
    for digits in (*turns, None):
        if digits is None and len(names) == 1:
            continue
        factors = {
            name: 1 + (digits if digits is not None else torch.full((rows,), n % DIGITS)).float() / DIGITS
            for n, name in enumerate(names)
        }
        ratios = probe.ratios(block, factors)
        if ratios is None or (digits is not None and digits is turns[0] and not ratios):
            return
        read.append({name: ((ratio - 1) * DIGITS).round().long() for name, ratio in ratios.items()})
    readers = dict.fromkeys(name for turn in read for name in turn)
    found: dict[str, dict[str, torch.Tensor]] = {name: {} for name in names}
    for reader in readers:
        # Where all digits were zero nothing changed.
        nothing = torch.zeros(columns_of(block.get_submodule(reader)), dtype=torch.int64)
        turn = [digits.get(reader, nothing).cpu() for digits in read]
        row = turn[0] + DIGITS * turn[1] if rows > DIGITS else turn[0]
        who = turn[-1] if len(names) > 1 else nothing
        if bool((who != who[0]).any()) or int(who[0]) >= len(names) or int(row.max()) >= rows:
            return
        found[names[int(who[0])]][reader] = row
    for name in names[:DIGITS]:
        if found[name]:
            readers_of = _with_unseen(block, found[name], probe)
            if readers_of is not None:
                yield Rescaling(name, readers_of)


def _with_unseen(
    block: nn.Module, readers: Mapping[str, torch.Tensor], probe: _Probe
) -> Mapping[str, torch.Tensor] | None:
    """Readers and their likes that no token was sent to: experts. None where the likes do not all read the same."""
    likes = {without_numbers(name): rows for name, rows in readers.items()}
    if any(not torch.equal(rows, likes[without_numbers(name)]) for name, rows in readers.items()):
        return None
    every = dict(readers)
    for name in probe.matrices:
        if name not in probe.inputs and without_numbers(name) in likes and len(readers) > 1:
            every[name] = likes[without_numbers(name)]
    return every


def _holds(block: nn.Module, place: Rescaling, run: Callable[[], torch.Tensor], output: torch.Tensor) -> bool:
    """Whether the block's output stays the same to the last bit, whatever powers of two are chosen."""
    saved = {name: copies_of(block.get_submodule(name)) for name in (place.writer, *place.readers)}
    generator = torch.Generator().manual_seed(0)
    exponents = torch.randint(-TRIAL, TRIAL + 1, (rows_of(block.get_submodule(place.writer)),), generator=generator)
    rescale(block, place, exponents.float())
    try:
        return torch.equal(run(), output)
    finally:
        for name, copies in saved.items():
            put_back(block.get_submodule(name), copies)


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).norm() <= EXACT * other.norm())


def _ratio(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor | None:
    """What each channel was multiplied by, or None where that is no number."""
    if before.shape != after.shape or before.dim() == 0:
        return None
    x, y = (t.reshape(-1, t.shape[-1]).double() for t in (before, after))
    size = x.square().sum(0)
    ratio = (x * y).sum(0) / size
    rest = (y - x * ratio).square().sum(0)
    return ratio if bool((rest <= EXACT**2 * size).all() and (size > 0).all()) else None


@contextmanager
def _watched(modules: Mapping[str, nn.Module], note: Callable[[str, Any, Any], Any]) -> Iterator[None]:
    """Tell of every call of some modules what came in and what went out; what `note` returns does not matter."""

    def hook(name: str) -> Any:
        def told(_module: nn.Module, args: tuple[Any, ...], answer: Any) -> None:
            note(name, args, answer)

        return told

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _held(
    modules: Mapping[str, nn.Module], answers: Mapping[str, Any], inputs: dict[str, torch.Tensor]
) -> Iterator[None]:
    """Have modules give these answers whatever they are fed, and note what that is."""

    def hook(name: str) -> Any:
        def held(_module: nn.Module, args: tuple[torch.Tensor, ...], _answer: Any) -> Any:
            inputs[name] = args[0]
            return answers[name]

        return held

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items() if name in answers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
