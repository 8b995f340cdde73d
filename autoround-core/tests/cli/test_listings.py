# SPDX-License-Identifier: Apache-2.0
import json
import os
import subprocess
import sys
import types

import click
import pytest
from click.testing import CliRunner

from auto_round.cli.main import main
from auto_round.errors import PlanError
from auto_round.testing.distributions import FakeDistribution

HOOKS = """
from auto_round.hookspecs import LazyDataType, LazyFormat, hookimpl
from auto_round.schemes import QuantizationScheme
@hookimpl
def quant_tensor(): return [LazyDataType("acme_fp5", "acme_math:Acme", "a summary " + 30 * "that is long ")]
@hookimpl
def schemes(): return {"ACME5": QuantizationScheme(bits=5, data_type="acme_fp5", act_bits=8, group_size=(2, 4)),
                       "ACME5A16": QuantizationScheme(bits=5, data_type="acme_fp5", sym=False)}
@hookimpl
def exporters(): return [LazyFormat("acmeformat", "acme_math:Format", "a file")]
"""


@pytest.fixture
def folder(tmp_path):
    FakeDistribution("autoround-acme", "1.5", {"acme": "autoround_acme"}, {"autoround_acme": HOOKS}).write(tmp_path)
    FakeDistribution("autoround-worse", "0.1", {"worse": "autoround_worse"}, {"autoround_worse": "1/0"}).write(tmp_path)
    return tmp_path


def start(folder, *arguments, dtypes="acme,worse", program=None, **options):
    paths = os.pathsep.join(p for p in (str(folder), os.environ.get("PYTHONPATH")) if p)
    environment = {**os.environ, "PYTHONPATH": paths, "AUTO_ROUND_DTYPES": dtypes}
    program = program or "from auto_round.cli.main import main; main(prog_name='auto-round')"
    command = [sys.executable, "-W", "error", "-c", program, *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment, **options)


ENTRY = {"name", "plugin", "distribution", "version", "state"}


@pytest.mark.parametrize(
    ("command", "keys", "names"),
    [
        ("dtypes", ENTRY | {"summary"}, ["acme_fp5"]),
        ("schemes", ENTRY | {"scheme"}, ["ACME5", "ACME5A16"]),
        ("formats", ENTRY | {"summary"}, ["auto_round", "fake", "acmeformat"]),
        (
            "plugins",
            {"name", "distribution", "version", "state", "reason", "notes", "traceback"}
            | {"data_types", "schemes", "formats", "packings"},
            ["core", "acme", "worse"],
        ),
    ],
)
def test_json(folder, command, keys, names):
    done = start(folder, command, "--json")
    assert done.returncode == 0
    written = json.loads(done.stdout)
    assert set(written) == {command, "warnings"}
    assert all(set(entry) == keys for entry in written[command])
    listed = [entry["name"] for entry in written[command]]
    assert [name for name in listed if name in names] == names


def test_a_scheme_in_json_can_be_made_again(folder):
    from auto_round import QuantizationScheme

    (entry, _) = json.loads(start(folder, "schemes", "--json").stdout)["schemes"]
    assert QuantizationScheme.from_dict(entry["scheme"]) == QuantizationScheme(
        bits=5, data_type="acme_fp5", act_bits=8, group_size=(2, 4)
    )


def test_tables_are_not_cut_when_piped(folder):
    lines = start(folder, "dtypes").stdout.splitlines()
    assert lines[0].split() == ["name", "plugin", "distribution", "version", "state", "summary"]
    assert lines[1].split()[:5] == ["acme_fp5", "acme", "autoround-acme", "1.5", "ready"]
    assert lines[1].endswith("a summary " + (30 * "that is long ").rstrip())
    assert "acme_fp5, 8 bits, groups 2x4, dynamic" in start(folder, "schemes").stdout


def test_plugins_say_what_is_wrong(folder):
    done = start(folder, "plugins")
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("worse")]
    assert "broken" in line
    assert "ZeroDivisionError: division by zero" in line
    (entry,) = [e for e in json.loads(start(folder, "plugins", "--json").stdout)["plugins"] if e["name"] == "worse"]
    assert "autoround_worse.py" in entry["traceback"]


@pytest.mark.parametrize("command", ["dtypes", "schemes", "formats", "plugins"])
def test_core_alone_says_what_to_install(folder, command):
    done = start(folder, command, dtypes="")
    assert done.returncode == 0
    assert "no data types are installed; begin with: pip install " in done.stderr


@pytest.mark.parametrize("command", ["dtypes", "schemes", "formats", "plugins"])
def test_listings_import_nothing_heavy(folder, command):
    program = (
        "import sys\nfrom auto_round.cli.main import main\nmain(standalone_mode=False)\n"
        "print(*{'torch', 'transformers', 'numpy'} & set(sys.modules), file=sys.stderr, sep=' HEAVY ', end=' END')"
    )
    done = start(folder, command, program=program, dtypes="acme")
    assert done.returncode == 0
    assert done.stderr == " END"


def test_help_imports_click_alone():
    program = (
        "import sys\nfrom auto_round.cli.main import main\nmain(['--help'], standalone_mode=False)\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = start("", program=program)
    loaded = set(done.stderr.split())
    assert "click" in loaded
    assert not loaded & {"torch", "transformers", "pluggy", "rich", "auto_round.plugins.registry"}
    assert {m for m in loaded if m.startswith("auto_round.cli.")} == {"auto_round.cli.main", "auto_round.cli.group"}
    for command in ("quantize", "plan", "schemes", "dtypes", "formats", "plugins"):
        assert command in done.stdout


def test_a_reader_that_stops_early_is_no_error(folder):
    program = (
        "import os, sys\nread, write = os.pipe()\nos.close(read)\nos.dup2(write, 1)\n"
        "from auto_round.cli.main import main; main(['schemes'])"
    )
    done = start(folder, program=program, dtypes="acme")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def quantize(monkeypatch):
    """A stand-in for the command that is meant when none is named."""
    called = []

    @click.command()
    @click.argument("model", required=False)
    @click.option("--model", "named")
    @click.option("--scheme")
    @click.option("--output_dir")
    def command(model, named, scheme, output_dir):
        called.append((model or named, scheme, output_dir))
        if scheme == "wrong":
            raise PlanError(["no such scheme", "nor that"])
        if scheme == "stop":
            raise KeyboardInterrupt

    module = types.ModuleType("auto_round.cli.quantize")
    module.quantize = command
    monkeypatch.setitem(sys.modules, "auto_round.cli.quantize", module)
    return called


@pytest.mark.parametrize(
    "arguments",
    [
        "quantize --model M --scheme S --output_dir O",
        "--model M --scheme S --output-dir O",
        "M --scheme S --output_dir=O",
        "--scheme S M --output-dir O",
        "quantize M --scheme S --output-dir=O",
        "--traceback M --scheme S --output-dir O",
        "M --scheme S --output-dir O --traceback",
    ],
)
def test_quantize_is_meant_when_no_command_is_named(quantize, arguments):
    done = CliRunner().invoke(main, arguments.split())
    assert done.exit_code == 0, done.output
    assert quantize == [("M", "S", "O")]


def test_group_options_stay_the_groups(quantize):
    for arguments in (["--help"], ["-h"], ["--version"]):
        assert CliRunner().invoke(main, arguments).exit_code == 0
    assert "Commands:" in CliRunner().invoke(main, []).output
    assert quantize == []


def test_a_misspelt_command_is_not_taken_for_a_model(quantize):
    done = CliRunner().invoke(main, ["dtyps"])
    assert done.exit_code == 2
    assert "did you mean dtypes?" in done.output
    assert quantize == []
    assert CliRunner().invoke(main, ["acme/dtyps"]).exit_code == 0


def test_unknown_options_name_the_nearest(quantize):
    done = CliRunner().invoke(main, ["M", "--sheme", "S"])
    assert done.exit_code == 2
    assert "--scheme" in done.output


def test_our_errors_are_one_line_without_traceback(quantize, monkeypatch):
    done = CliRunner().invoke(main, ["M", "--scheme", "wrong"])
    assert done.exit_code == 1
    assert done.stderr == "error: 2 problems:\n  - no such scheme\n  - nor that\n"
    assert isinstance(CliRunner().invoke(main, ["--traceback", "M", "--scheme", "wrong"]).exception, PlanError)
    monkeypatch.setenv("AUTO_ROUND_TRACEBACK", "1")
    assert isinstance(CliRunner().invoke(main, ["M", "--scheme", "wrong"]).exception, PlanError)


def test_an_interrupt_is_one_line(quantize):
    done = CliRunner().invoke(main, ["M", "--scheme", "stop"])
    assert (done.exit_code, done.stderr) == (130, "interrupted\n")


def test_hook_calls_are_shown_on_request(folder, monkeypatch):
    monkeypatch.setenv("AUTO_ROUND_TRACE", "1")
    assert "plugin acme: schemes() took" in start(folder, "schemes", dtypes="acme").stderr


def test_a_table_on_a_terminal_is_ruled_and_whole(monkeypatch, capsys):
    from auto_round.cli import tables

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    tables.write_table(["name", "empty", "summary"], [["acme", "", "[bold] " + "word " * 12]])
    written = capsys.readouterr().out
    assert "empty" not in written
    assert "[bold]" in written
    assert written.count("word") == 12
