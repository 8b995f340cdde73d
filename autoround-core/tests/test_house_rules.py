# SPDX-License-Identifier: Apache-2.0
"""The rules of the house that a program can check: core names no data type, arrows point one way, files look alike.

In a checkout the families beside core are checked too; elsewhere there are none to check.
"""

import ast
import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest

CORE = Path(__file__).resolve().parents[1]
REPOSITORY = CORE.parent
FAMILIES = sorted(folder for folder in REPOSITORY.glob("autoround-*/src/*") if folder.parents[1] != CORE)
CORE_FILES = sorted(CORE.glob("src/auto_round/**/*.py"))
FAMILY_FILES = sorted(file for family in FAMILIES for file in family.glob("**/*.py"))
FILES = CORE_FILES + FAMILY_FILES

DATA_TYPE_NAMES = re.compile(
    r"\b(nvfp\d*|nv_fp\d*|mxfp\d*|mx_fp\d*|mx_int\d*|gguf|[iq][2-8]_[k01](_[sml])?|fp8|fp4|e4m3(fn)?|e5m2|e2m1"
    r"|int_sym|int_asym|awq|gptq)\b",
    re.IGNORECASE,
)


def label(file: Path) -> str:
    return str(file.relative_to(REPOSITORY))


each_file = pytest.mark.parametrize("file", FILES, ids=label)
each_core_file = pytest.mark.parametrize("file", CORE_FILES, ids=label)


def imported(file: Path) -> Iterator[str]:
    """Top-level name of each module a file imports, wherever in the file it does."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{label(file)}:{node.lineno}: relative import"
            yield str(node.module).split(".")[0]


def used_elsewhere() -> dict[str, set[str]]:
    """For each module of ours, the names that other files import from it."""
    used = defaultdict(set)
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                used[str(node.module)] |= {alias.name for alias in node.names}
    return used


USED_ELSEWHERE = used_elsewhere()


def module_name(file: Path) -> str:
    """`auto_round.data_type` for `.../src/auto_round/data_type/__init__.py`."""
    parts = file.with_suffix("").parts
    below = parts[len(parts) - parts[::-1].index("src") :]
    return ".".join(below).removesuffix(".__init__")


def exported(module: ast.Module) -> list[str] | None:
    """What `__all__` says, None if there is none."""
    for node in module.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return list(ast.literal_eval(node.value))
    return None


def test_there_are_sources_to_check():
    assert len(CORE_FILES) > 10


@each_core_file
def test_core_names_no_data_type(file):
    lines = enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
    assert [f"{label(file)}:{n}: {line.strip()}" for n, line in lines if DATA_TYPE_NAMES.search(line)] == []


@pytest.mark.parametrize("word", ["NVFP4", "mx_fp", "q4_k_m", "gguf", "int_sym", "auto_gptq or gptq", "fp8"])
def test_the_search_finds_names(word):
    assert DATA_TYPE_NAMES.search(f"x = '{word}'")


@pytest.mark.parametrize("word", ["weight_fp8_max_scale", "integer", "q_scale", "sym", "bf16", "fp16", "fp32"])
def test_the_search_leaves_other_words_alone(word):
    assert not DATA_TYPE_NAMES.search(word)


@each_core_file
def test_core_imports_no_family(file):
    families = {family.name for family in FAMILIES}
    assert {name for name in imported(file) if name.startswith("auto_round_") or name in families} == set()


@pytest.mark.parametrize("file", FAMILY_FILES, ids=label)
def test_a_family_imports_no_other_family(file):
    (own,) = (family.name for family in FAMILIES if file.is_relative_to(family))
    assert {name for name in imported(file) if name.startswith("auto_round")} <= {"auto_round", own}


@each_file
def test_every_file_states_its_licence_and_what_it_is(file):
    text = file.read_text(encoding="utf-8")
    assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n")
    module = ast.parse(text)
    assert ast.get_docstring(module) or not module.body, "no docstring"


@each_file
def test_all_names_what_others_use(file):
    names = exported(ast.parse(file.read_text(encoding="utf-8")))
    if names is None:
        return
    assert len(names) == len(set(names)), "a name twice"
    submodules = {path.stem for path in file.parent.iterdir()} if file.name == "__init__.py" else set()
    assert USED_ELSEWHERE[module_name(file)] - set(names) - submodules - {"__version__"} == set()


def test_every_distribution_has_the_licence_and_the_type_marker():
    for package in (CORE / "src" / "auto_round", *FAMILIES):
        distribution = package.parents[1]
        assert (package / "py.typed").is_file()
        assert (distribution / "LICENSE").read_bytes() == (CORE / "LICENSE").read_bytes(), distribution.name


def test_importing_core_loads_neither_torch_nor_plugins():
    program = "import auto_round, json, sys; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, capture_output=True, text=True)
    loaded = set(json.loads(done.stdout))
    assert "auto_round" in loaded
    assert loaded & {"torch", "transformers", "numpy", "accelerate", "datasets", "pluggy", "rich"} == set()
    assert {name for name in loaded if name.startswith("auto_round_")} == set()


def test_core_is_marked_as_typed():
    assert resources.files("auto_round").joinpath("py.typed").is_file()
