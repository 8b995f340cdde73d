# SPDX-License-Identifier: Apache-2.0
"""Options that say which model and which scheme, the same for `plan` and `quantize`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

__all__ = [
    "activations",
    "e2e_iters",
    "low_memory",
    "model_and_scheme",
    "read_model",
    "read_scheme",
    "recipe",
]

Command = TypeVar("Command", bound=Callable[..., Any])


class GroupSizeType(click.ParamType):  # type: ignore[type-arg]  # generic only from click 8.4 on
    """A whole number, or two for a block: `128` or `128,128`."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | tuple[int, int]:
        try:
            numbers = [int(part) for part in str(value).split(",")]
        except ValueError:
            numbers = []
        if len(numbers) == 1:
            return numbers[0]
        if len(numbers) == 2:
            return numbers[0], numbers[1]
        return self.fail(f"{value!r} is neither a number nor two numbers with a comma", param, ctx)


class LayerConfigType(click.ParamType):  # type: ignore[type-arg]
    """A JSON object, or the name of a file with one."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        text = str(value)
        try:
            if not text.lstrip().startswith("{"):
                text = Path(text).read_text(encoding="utf-8")
            loaded = json.loads(text)
        except OSError as error:
            self.fail(f"{value}: {error.strerror or error}", param, ctx)
        except ValueError as error:
            self.fail(f"no valid JSON: {error}", param, ctx)
        if not isinstance(loaded, dict):
            self.fail("a JSON object is needed, layer names to schemes or fields", param, ctx)
        return loaded


recipe = click.option(
    "--recipe", default="published", show_default=True, help="How to tune: published, or best (slower)."
)

activations = click.option(
    "--activations",
    type=click.Choice(["disk", "cpu", "device"]),
    help="Where activations between blocks live.  [default: disk, cpu without a journal]",
)

e2e_iters = click.option(
    "--e2e-iters", type=int, default=0, show_default=True, help="Steps of all blocks together after each block's own."
)

low_memory = click.option("--low-memory", is_flag=True, help="Tune with less memory, slower; the same result.")
"""Options of both that decide what memory is needed."""

_OPTIONS = [
    click.argument("model_argument", metavar="MODEL", required=False),
    click.option("--model", help="The same as MODEL: a directory or a hub id."),
    click.option("--scheme", help="Name of a scheme; `auto-round schemes` lists them.  [default: W4A16]"),
    click.option("--bits", type=int, help="Bits of a weight; wins over the scheme, as all options below."),
    click.option("--group-size", type=GroupSizeType(), help="Weights that share a scale; -1 for a row."),
    click.option("--asym/--sym", "asym", default=None, help="With or without a zero point."),
    click.option("--data-type", help="Name of a data type; `auto-round dtypes` lists them."),
    click.option("--act-bits", type=int, help="Bits of an activation."),
    click.option("--act-group-size", type=GroupSizeType(), help="Activations that share a scale; -1 for a token."),
    click.option("--act-asym/--act-sym", "act_asym", default=None, help="Activations with or without a zero point."),
    click.option("--act-data-type", help="Data type of activations."),
    click.option("--disable-act-dynamic", is_flag=True, help="Fix activation scales at calibration."),
    click.option("--super-bits", type=int, help="Bits of a quantized scale."),
    click.option("--super-group-size", type=int, help="Groups that make a super-group."),
    click.option(
        "--layer-config",
        type=LayerConfigType(),
        help='Layers to treat differently: JSON, or a file with it, e.g. \'{"layers.0": {"bits": 8}}\'.',
    ),
    click.option("--ignore-layers", default="", help="Layers to leave at full precision, with commas."),
    click.option("--quant-lm-head", is_flag=True, help="Quantize the output layer too."),
    click.option("--format", "format_", default="auto_round", show_default=True, help="Output formats, with commas."),
    click.option("--trust-remote-code", is_flag=True, help="Let code that comes with the model run."),
]


def model_and_scheme(command: Command) -> Command:
    """Add the argument and the options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def read_model(options: dict[str, Any]) -> str:
    """Take the model out of the options, given either way."""
    argument, option = options.pop("model_argument"), options.pop("model")
    if argument and option:
        raise click.UsageError(f"the model is named twice: {argument} and --model {option}.")
    if not (argument or option):
        raise click.UsageError("no model: name a directory or a hub id.")
    return str(argument or option)


def read_scheme(options: dict[str, Any]) -> dict[str, Any]:
    """Take what makes a scheme out of the options, as keywords of `AutoRound`."""
    asym, act_asym = options.pop("asym"), options.pop("act_asym")
    static = options.pop("disable_act_dynamic")
    fields = {
        "bits": options.pop("bits"),
        "group_size": options.pop("group_size"),
        "sym": None if asym is None else not asym,
        "data_type": options.pop("data_type"),
        "act_bits": options.pop("act_bits"),
        "act_group_size": options.pop("act_group_size"),
        "act_sym": None if act_asym is None else not act_asym,
        "act_data_type": options.pop("act_data_type"),
        "act_dynamic": False if static else None,
        "super_bits": options.pop("super_bits"),
        "super_group_size": options.pop("super_group_size"),
    }
    given = {name: value for name, value in fields.items() if value is not None}
    layers = {name: options.pop(name) for name in ("layer_config", "ignore_layers")}
    return {"scheme": options.pop("scheme"), **layers, **given}
