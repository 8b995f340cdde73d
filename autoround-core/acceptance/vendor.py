# SPDX-License-Identifier: Apache-2.0
"""What a data type cost its author, and what it is worth. Exit code 0 if everything is as it should be.

usage: vendor.py PACKAGE GENERATED MODEL TEXT CHECKPOINT...

PACKAGE is an author's package, GENERATED what `auto-round new-dtype` wrote before it was edited. Counts the lines that
were added and compares with what the package's README says; looks for the author's name in the installed core, where it
must not be; loads the checkpoints as any user of transformers does, and prints their perplexity beside that of MODEL.
Core is imported by transformers alone.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import re
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

PARTS = {"src": "package", "tests": "tests", "pyproject.toml": "pyproject.toml"}
WORST = 1.5
"""Perplexity, relative to the original's, that a checkpoint of four bits stays well below unless it was misread."""


def lines_written(package: Path, generated: Mapping[str, str]) -> dict[str, int]:
    """Lines of the package that are not in the generated one, a text for each path, without blank ones, by part."""
    written = dict.fromkeys(PARTS.values(), 0)
    for file in sorted(path for path in package.rglob("*") if path.suffix in {".py", ".toml"}):
        path = file.relative_to(package)
        old, new = generated.get(path.as_posix(), ""), file.read_text(encoding="utf-8")
        added = difflib.ndiff(old.splitlines(), new.splitlines())
        written[PARTS[path.parts[0]]] += sum(1 for line in added if line.startswith("+ ") and line[2:].strip())
    return written


def mentions(word: str) -> list[str]:
    """Files of the installed core in which a word stands, docstrings and comments left out."""
    found = []
    for path in metadata.files("autoround-core") or ():
        if path.suffix not in {".py", ".json"}:
            continue
        text = Path(str(path.locate())).read_text(encoding="utf-8")
        if path.suffix == ".py":
            tree = ast.parse(text)
            for node in ast.walk(tree):
                if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                    node.value = ast.Constant(None)
            text = ast.unparse(tree)
        if word in text.lower():
            found.append(str(path))
    return found


def check_lines(package: Path, generated: Path) -> None:
    """Print what was written; the README must say the same."""
    files = (path for path in generated.rglob("*") if path.is_file())
    written = lines_written(package, {f.relative_to(generated).as_posix(): f.read_text("utf-8") for f in files})
    print(f"{package.name}: lines that its author wrote: " + ", ".join(f"{n} {part}" for part, n in written.items()))
    readme = (package / "README.md").read_text(encoding="utf-8")
    said = {part: int(count) for part, count in re.findall(r"^\| (\S+) \| (\d+) \|$", readme, re.MULTILINE)}
    if said != written:
        sys.exit(f"its README says {said}")


def main() -> None:
    """Count, look, load, measure."""
    package, generated, model, text, *checkpoints = map(Path, sys.argv[1:])
    check_lines(package, generated)
    word = package.name.removeprefix("autoround-").partition("-")[0]
    found = mentions(word)
    print(f"files of core that mention {word}: {len(found)}")
    if found:
        sys.exit(", ".join(found))
    spec = importlib.util.spec_from_file_location("measure", Path(__file__).parents[1] / "demo" / "measure.py")
    assert spec is not None
    assert spec.loader is not None
    measure = importlib.util.module_from_spec(spec)
    sys.modules["measure"] = measure
    spec.loader.exec_module(measure)
    judge = measure.Measure(model, text)
    original = judge(judge.original).perplexity
    print(f"perplexity of {model.name}: {original:.3f}")
    for checkpoint in checkpoints:
        quality = judge(measure.load(checkpoint))
        before, after = measure.bytes_of_layers(model, checkpoint)
        print(
            f"perplexity of {checkpoint.name}: {quality.perplexity:.3f}, divergence {quality.divergence:.5f}, "
            f"quantized layers {16 * after / before:.3f} bits a weight"
        )
        if not quality.perplexity < WORST * original:
            sys.exit("that is not the model that was quantized")


if __name__ == "__main__":
    main()
