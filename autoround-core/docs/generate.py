# SPDX-License-Identifier: Apache-2.0
"""Write `hooks.md`, the reference of everything a plugin answers, from the docstrings and signatures of core.

Run it after a change of the contract: `python autoround-core/docs/generate.py`. A test fails until it was run.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from auto_round import hookspecs, lazy, plan, schemes
from auto_round.data_type import codes, grouping, kernels, record, register, rounding
from auto_round.export import checkpoint, format as output_format, packing
from auto_round.model import reader
from auto_round.plugins.loading import HOOKS
from auto_round.tuning import result

FILE = Path(__file__).with_name("hooks.md")
WIDTH = 110
SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises):$")
HEADINGS = {"Raises": "Raises "}

INTRODUCTION = """# Hook reference

<!-- Written by generate.py from the docstrings of core; change those. -->

A plugin is the module, or the object, that an entry point of the group `auto_round.dtypes` names. It answers the hooks
below as far as it has something to say; functions marked with `register_dtype` in it need no hook. It may state
`AUTO_ROUND_API = "{version}"`, the version of this interface that it was written for, see
[compatibility](compatibility.md).
"""


class _Plain(str):
    """An annotation, shown as it was written."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def signature(function: Any) -> str:
    """`(tensor: torch.Tensor, **offers: Any) -> tuple[...]`, as in the source, without `self`."""
    found = inspect.signature(function)
    parameters = [
        p.replace(annotation=_Plain(p.annotation) if p.annotation is not p.empty else p.empty)
        for p in found.parameters.values()
        if p.name != "self"
    ]
    returned = found.return_annotation
    shown = found.replace(
        parameters=parameters, return_annotation=_Plain(returned) if returned is not found.empty else returned
    )
    return str(shown).removesuffix(" -> None")


def prose(docstring: str | None) -> Iterator[str]:
    """A docstring as Markdown: arguments, attributes and errors become lists."""
    section = ""
    for line in inspect.cleandoc(docstring or "").splitlines():
        heading = SECTION.match(line)
        if heading:
            section, first = heading[1], True
        elif not section or not line:
            yield line
        elif not line.startswith(" "):
            section = ""
            yield line
        elif section in ("Returns", "Yields"):
            text = line.strip()
            yield f"{section} {text}" if first else text
            first = False
        else:
            yield _item(line.removeprefix("    "), HEADINGS.get(section, ""))


def _item(line: str, heading: str) -> str:
    """`name: text` as an item of a list; what is indented goes on with the item before."""
    names, colon, text = line.partition(": ")
    if line.startswith(" ") or not colon:
        return f"  {line.strip()}"
    return f"- {heading}{', '.join(f'`{name.strip()}`' for name in names.split(','))}: {text}"


def class_part(thing: type[Any], *, methods: bool = True) -> Iterator[str]:
    """A class: what it is, its attributes, its methods with their signatures."""
    yield f"## {thing.__name__}"
    yield ""
    yield f"`{thing.__module__}.{thing.__name__}`"
    yield ""
    if dataclasses.is_dataclass(thing):
        yield from code(f"{thing.__name__}{signature(thing)}")
    yield from prose(thing.__doc__)
    yield ""
    if "Attributes:" not in (thing.__doc__ or ""):
        for base in thing.__bases__:
            yield from prose(base.__doc__ if base.__name__.startswith("_") else "")
            yield ""
    for name, member in vars(thing).items():
        function = member.fget if isinstance(member, property) else member
        if not methods or not inspect.isfunction(function) or function.__doc__ is None:
            continue
        if name.startswith("_") and name != "__call__":
            continue
        must = ", required" if getattr(function, "__isabstractmethod__", False) else ""
        yield f"### {thing.__name__}.{name}{must}"
        yield ""
        if isinstance(member, property):
            yield f"A property, `{inspect.signature(function).return_annotation}`."
            yield ""
        else:
            yield from code(f"{name}{signature(function)}")
        yield from prose(function.__doc__)
        yield ""


def code(text: str) -> Iterator[str]:
    """A signature, on several lines if it is long."""
    if len(text) > WIDTH:
        head, _, rest = text.partition("(")
        inner, closing, returned = rest.rpartition(")" if "->" not in text else ") ->")
        parts = re.split(r", (?=\*{0,2}\w+(?::|$)|\*(?:,|$))", inner)
        text = "\n".join([f"{head}(", *(f"    {part}," for part in parts), f"{closing}{returned}"])
    yield from ("```text", text, "```", "")


def hooks_part() -> Iterator[str]:
    """The hooks themselves."""
    yield "## Hooks"
    yield ""
    yield "A hook is a function of that name, marked with `auto_round.hookspecs.hookimpl`. It takes nothing."
    for name in HOOKS:
        hook = getattr(hookspecs, name)
        yield ""
        yield f"### {name}"
        yield ""
        yield from code(f"{name}{signature(hook)}")
        yield from prose(hook.__doc__)
    yield ""


def offers_part() -> Iterator[str]:
    """Everything core can pass to a data type's function."""
    yield "## Offers"
    yield ""
    yield "What a `quant_tensor`, as a function or as a method, may name among its parameters; it gets what it names."
    always = [f"`{name}`" for name in register.OFFERS if name in register.ALWAYS]
    yield f"{', '.join(always)} are there at every call; whatever else a function names has to have a default."
    yield ""
    yield "| name | holds |"
    yield "|---|---|"
    for name, meaning in register.OFFERS.items():
        yield f"| `{name}` | {meaning} |"
    yield ""


def function_part(function: Any) -> Iterator[str]:
    """One function."""
    yield f"### {function.__name__}"
    yield ""
    yield f"`{function.__module__}`"
    yield ""
    yield from code(f"{function.__name__}{signature(function)}")
    yield from prose(function.__doc__)
    yield ""


def document() -> str:
    """The whole reference."""
    version = ".".join(map(str, hookspecs.API_VERSION))
    lines = [INTRODUCTION.format(version=version)]
    lines += hooks_part()
    for lazily in (lazy.LazyDataType, lazy.LazyFormat, lazy.LazyPacking):
        lines += class_part(lazily)
    lines += ["## Functions", "", *function_part(register.register_dtype)]
    helpers: tuple[Any, ...] = (
        grouping.reshape_pad_tensor_by_group_size,
        grouping.revert_tensor_by_pad,
        rounding.round_ste,
        kernels.compilable,
        kernels.chunks,
    )
    for function in helpers:
        lines += function_part(function)
    lines += class_part(kernels.Room)
    lines += offers_part()
    described: tuple[type[Any], ...] = (
        record.DataType,
        codes.Codes,
        record.Runtime,
        record.Kernel,
        packing.Packing,
        output_format.OutputFormat,
        output_format.Exporter,
        checkpoint.CheckpointFormat,
        reader.WeightReader,
    )
    for thing in described:
        lines += class_part(thing)
    handed: tuple[type[Any], ...] = (schemes.QuantizationScheme, plan.LayerSpec, result.LayerResult)
    for thing in handed:
        lines += class_part(thing, methods=False)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


if __name__ == "__main__":
    FILE.write_text(document(), encoding="utf-8")
