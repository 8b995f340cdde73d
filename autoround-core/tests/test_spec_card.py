# SPDX-License-Identifier: Apache-2.0
"""The spec card and the table of runtimes, made of what plugins say."""

import json

import pytest
import torch
from click.testing import CliRunner

from auto_round import DataType, QuantizationScheme, hookimpl
from auto_round.cli.main import main
from auto_round.data_type import Runtime
from auto_round.errors import SchemeError, UnknownNameError
from auto_round.export import OutputFormat
from auto_round.runtime_table import Place, table
from auto_round.spec_card import spec_card

from .conftest import Steps, StepsPlugin


def test_the_card_tells_what_a_weight_becomes(registry):
    card = spec_card(registry, "steps")
    assert (card.schemes, card.provenance.plugin) == (("STEPS4",), "steps")
    assert card.learnt == {"v": "free", "max_scale": "0 to 1"}
    assert card.on_disk["auto_round"] == {"codes_codes": "int8 [4096, 4096]", "codes_scale": "float16 [4096, 128]"}
    assert card.bits_per_weight == 4.5
    example = card.example
    dtype, shape, scales = example.stored["scale"]
    assert (example.shape, dtype, shape) == ((2, 32), "float16", (2, 1))
    # By hand: the largest of the first row is 0.34, and seven steps reach it.
    assert scales[0] == pytest.approx(0.34 / 7, rel=2**-11)
    assert example.stored["codes"][2] == (0, 0, 0, 1, -2, 3, -4, 7)
    assert example.after == pytest.approx([scales[0] * code for code in example.stored["codes"][2]])


def test_a_scheme_of_another_data_type_is_refused(registry):
    registry.add_scheme("OTHER", QuantizationScheme(4, 32, True, "other"))

    class Other(DataType):
        name = "other"

        def quant_tensor(self, tensor, bits=4, group_size=32):
            return tensor, None, None

    class Plugin:
        @hookimpl
        def quant_tensor(self):
            return [Other()]

    registry.register(Plugin(), "other")
    with pytest.raises(SchemeError, match="OTHER are stored as other, not as steps"):
        spec_card(registry, "steps", "OTHER")
    with pytest.raises(UnknownNameError, match="nonsense"):
        spec_card(registry, "nonsense")
    assert spec_card(registry, "other").example is None  # it has no stored form


class Places(Steps):
    runtimes = (
        Runtime("everywhere", "1.0", "auto_round", note="any", needs="patience"),
        Runtime("wide", "2.0", "auto_round", ("cuda",), {"group_size": (128,)}),
        Runtime("elsewhere", "3.0", "tapes"),
    )


class Tapes(OutputFormat):
    name = "tapes"

    def refuses(self, layer):
        return "too many" if layer.scheme.bits > 4 else None

    def start(self, plan, model, directory):
        raise NotImplementedError


class PlacesPlugin(StepsPlugin):
    @hookimpl
    def quant_tensor(self):
        return [Places()]

    @hookimpl
    def schemes(self):
        return {
            f"S{bits}G{size}": QuantizationScheme(bits, size, True, "steps") for bits in (4, 6) for size in (32, 128)
        }

    @hookimpl
    def exporters(self):
        return [Tapes()]


def test_the_table_says_what_loads_where(isolated_registry):
    isolated_registry.register(PlacesPlugin(), "places")
    rows = dict(table(isolated_registry, isolated_registry.scheme_names()))
    both = ("cpu", "cuda")
    assert rows == {
        Place("auto_round", "everywhere", "1.0", both, "any; with patience"): ("S4G32", "S4G128", "S6G32", "S6G128"),
        Place("auto_round", "wide", "2.0", ("cuda",), ""): ("S4G128", "S6G128"),
        Place("tapes", "elsewhere", "3.0", both, ""): ("S4G32", "S4G128"),
    }


@pytest.fixture
def command(monkeypatch, isolated_registry):
    """Runs a command line on plugins that a test registers."""
    monkeypatch.setattr("auto_round.plugins.default_registry", lambda: isolated_registry)
    isolated_registry.register(PlacesPlugin(), "places")
    return lambda *arguments: CliRunner().invoke(main, list(arguments), prog_name="auto-round")


def test_show_on_the_command_line(command):
    shown = command("dtypes", "show", "steps", "--scheme", "S6G32").output
    assert "steps of one scale per group" in shown
    assert "codes_scale: float16 [4096, 128]" in shown
    assert "wide" not in shown  # groups of 32 do not load there
    plain = json.loads(command("dtypes", "show", "steps", "--json").output)
    assert plain["scheme"]["bits"] == 4
    assert plain["example"]["stored"]["codes"][0] == "int8"
    assert torch.tensor(plain["example"]["before"]).shape == (8,)


def test_runtimes_on_the_command_line(command):
    written = json.loads(command("runtimes", "S4G128", "--json").output)["runtimes"]
    assert [row["runtime"] for row in written] == ["everywhere", "wide", "elsewhere"]
    first, _, *rows = command("runtimes", "--markdown", "S6G128").output.splitlines()
    assert first.startswith("| format | runtime |")
    assert len(rows) == 2
    assert json.loads(command("runtimes", "--distribution", "none-such", "--json").output) == {"runtimes": []}
