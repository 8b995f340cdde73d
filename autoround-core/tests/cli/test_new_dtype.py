# SPDX-License-Identifier: Apache-2.0
"""`auto-round new-dtype`: what it writes works before anybody changes it, and it writes all or nothing."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from auto_round.cli.main import main
from auto_round.errors import ConflictError, OutputError, SchemeError
from auto_round.plugins import Registry
from auto_round.scaffold import package
from auto_round.scaffold.names import PackageNames, check_free
from auto_round.scaffold.package import package_files, write_package
from auto_round.testing.distributions import FakeDistribution

CORE = Path(__file__).resolve().parents[2]
VENDOR = CORE / "tests" / "vendor" / "autoround-acme-nf4"
NAMES = PackageNames("autoround-acme-nf4", "autoround_acme_nf4", "acme_nf4", "ACME_NF4", "AcmeNf4")


def install(names, folder, files=None):
    """As an installer would leave it, without one."""
    start = f"src/{names.package}/"
    modules = {
        path.removeprefix("src/").removesuffix(".py").removesuffix("/__init__").replace("/", "."): text
        for path, text in (files or package_files(names)).items()
        if path.startswith(start) and path.endswith(".py")
    }
    FakeDistribution(names.distribution, "0.1.0", {names.data_type: names.package}, modules).write(folder)


def start(*command, folder, **options):
    paths = os.pathsep.join(p for p in (str(folder), os.environ.get("PYTHONPATH")) if p)
    environment = {**os.environ, "PYTHONPATH": paths, "AUTO_ROUND_DTYPES": "acme_nf4"}
    return subprocess.run(
        [sys.executable, *command], check=False, capture_output=True, text=True, env=environment, **options
    )


@pytest.mark.parametrize("name", ["acme-nf4", "autoround-acme-nf4", "Acme_NF4", "acme.nf4", "AutoRound_acme-nf4"])
def test_everything_is_called_after_one_name(name):
    assert PackageNames.of(name) == NAMES


@pytest.mark.parametrize(
    "name", ["", "-acme", "acme-", "a b", "a/b", "../acme", "acme\n", "é", "4bit", "a--b", "x" * 41]
)
def test_what_cannot_name_a_package(name):
    with pytest.raises(SchemeError, match="cannot name a package"):
        PackageNames.of(name)


@pytest.mark.parametrize("name", ["class", "autoround", "autoround-4bit", "lambda", "none", "true"])
def test_what_cannot_name_a_module(name):
    with pytest.raises(SchemeError, match="cannot name a module of Python"):
        PackageNames.of(name)


@pytest.mark.parametrize("name", ["core", "autoround-int", "int8", "w4a16"])
def test_names_of_known_distributions_are_taken(name):
    with pytest.raises(ConflictError, match="choose another name"):
        check_free(PackageNames.of(name), Registry(entry_points=False))


def test_names_of_installed_plugins_are_taken(registry):
    check_free(PackageNames.of("step"), registry)
    with pytest.raises(ConflictError, match="the name of data type steps is taken by steps"):
        check_free(PackageNames.of("Steps"), registry)
    with pytest.raises(ConflictError, match="the name of scheme STEPS4 is taken by steps"):
        check_free(PackageNames.of("steps4"), registry)


@pytest.mark.parametrize("name", ["a", "acme-nf4", "a-name-of-25-letters-in-it"])
def test_files_are_filled_in_and_compile(name):
    files = package_files(PackageNames.of(name))
    assert {"README.md", "pyproject.toml", "tests/test_conformance.py"} <= set(files)
    for path, text in files.items():
        assert "$" not in path + text, path
        assert text.endswith("\n") or not text, path
        if path.endswith(".py"):
            assert ast.get_docstring(ast.parse(text)), path
            assert max(map(len, text.splitlines())) <= 120, path


def test_the_command_writes_it_and_says_what_comes_next(tmp_path, monkeypatch, isolated_registry):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("auto_round.plugins.default_registry", lambda: isolated_registry)
    done = CliRunner().invoke(main, ["new-dtype", "acme-nf4"])
    assert done.exit_code == 0, done.output
    (made,) = tmp_path.iterdir()
    assert made.name == "autoround-acme-nf4"
    written = {str(f.relative_to(made)): f.read_text(encoding="utf-8") for f in made.rglob("*") if f.is_file()}
    assert written == package_files(NAMES)
    told = [line.strip() for line in done.output.splitlines() if line.startswith("  ")]
    assert told == [
        "pip install -e ./autoround-acme-nf4 'autoround-core[testing]'",
        "pytest ./autoround-acme-nf4",
        "auto-round quantize MODEL --scheme ACME_NF4 --format auto_round --dataset TEXT --output DIR",
    ]


def test_other_folders(tmp_path):
    folder = tmp_path / "new" / "some folder"
    folder.mkdir(parents=True)  # an empty one is as good as none
    done = CliRunner().invoke(main, ["new-dtype", "acme-nf4", "--output", str(folder)])
    assert done.exit_code == 0, done.output
    assert f"pytest '{folder}'" in done.output
    assert (folder / "pyproject.toml").stat().st_mode & 0o077 == (tmp_path / "new").stat().st_mode & 0o044
    assert [f.name for f in folder.parent.iterdir()] == ["some folder"]


def test_a_folder_that_holds_something_stays_as_it_is(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("mine")
    with pytest.raises(OutputError, match="exists and is not an empty folder"):
        write_package(NAMES, tmp_path / "mine")
    with pytest.raises(OutputError, match="exists and is not an empty folder"):
        write_package(NAMES, tmp_path / "mine" / "notes")
    assert [f.name for f in tmp_path.rglob("*")] == ["mine", "notes"]


def test_nothing_is_left_half_written(tmp_path, monkeypatch):
    files = package_files(NAMES)
    monkeypatch.setattr(package, "package_files", lambda names: {**files, "README.md/below": "a file is no folder"})
    with pytest.raises(OutputError, match="cannot be written: "):
        write_package(NAMES, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_an_error_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["new-dtype", "a b"])
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert list(tmp_path.iterdir()) == []


def test_neither_the_command_nor_the_hooks_import_torch(tmp_path):
    install(NAMES, tmp_path / "site")
    program = (
        "import sys\nfrom auto_round.cli.main import main\nmain(sys.argv[1:], standalone_mode=False)\n"
        "print(*{'torch', 'transformers', 'numpy'} & set(sys.modules), file=sys.stderr)"
    )
    done = start("-W", "error", "-c", program, "new-dtype", "other", folder=tmp_path / "site", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "\n")
    taken = start("-c", program, "new-dtype", "acme-nf4", folder=tmp_path / "site", cwd=tmp_path)
    assert "taken by autoround-acme-nf4" in taken.stderr


def test_the_vendor_of_the_tests_says_how_much_it_wrote():
    """Its README, against what the command writes today. Runs what `nox -s vendor` runs."""
    spec = importlib.util.spec_from_file_location("acceptance_vendor", CORE / "acceptance" / "vendor.py")
    counting = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(counting)
    readme = (VENDOR / "README.md").read_text(encoding="utf-8")
    said = {part: int(n) for part, n in re.findall(r"^\| (\S+) \| (\d+) \|$", readme, re.MULTILINE)}
    assert said == counting.lines_written(VENDOR, package_files(NAMES))


@pytest.mark.slow
def test_what_is_written_passes_its_own_tests(tmp_path):
    folder = tmp_path / NAMES.distribution
    write_package(NAMES, folder)
    install(NAMES, tmp_path / "site")
    done = start("-m", "pytest", "-q", "-rf", "-p", "no:cacheprovider", folder=tmp_path / "site", cwd=folder)
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.search(r"^\d{3} passed, \d+ skipped", done.stdout, re.MULTILINE), done.stdout[-3000:]
    assert (folder / "tests" / "golden" / "acme_nf4.safetensors").is_file()
