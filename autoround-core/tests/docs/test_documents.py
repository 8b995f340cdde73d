# SPDX-License-Identifier: Apache-2.0
"""The documents for authors do what they say: their blocks are pasted, in order, into an empty folder.

A block whose first line is a comment with a file name becomes that file; other blocks of Python and shell are run; a
block of text right after one that was run is found in what it printed. `pip install -e .` is done by a stand-in.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

CORE = Path(__file__).resolve().parents[2]
DOCS = CORE / "docs"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE_NAME = re.compile(r"# ([\w./-]+\.(?:py|toml|sh|md|json))\n")
RUN = {"python", "sh"}
# Each with the documents whose files it builds on.
EXECUTED = {
    "first-data-type.md": (),
    "packing-and-export.md": ("first-data-type.md",),
    "publishing.md": ("first-data-type.md",),
}


def blocks(document):
    return [(match[1], match[2]) for match in BLOCK.finditer((DOCS / document).read_text(encoding="utf-8"))]


class Folder:
    """Where the reader sits."""

    def __init__(self, place):
        self.place, self.site = place, place / "site"
        self.site.mkdir()
        (place / "autoround-core").mkdir()
        (place / "autoround-core" / "demo").symlink_to(CORE / "demo")
        bin_folder = Path(sys.executable).parent
        self.environment = {
            **os.environ,
            "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.site),
            "AUTO_ROUND_DTYPES": "autoround-acme",  # whatever else is installed here
            "HF_HUB_OFFLINE": "1",
        }

    def write(self, name, text):
        file = self.place / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def run(self, kind, text):
        stand_in = shlex.join([sys.executable, str(Path(__file__).with_name("pip_stand_in.py")), str(self.site)])
        command = ["bash", "-euc", f'pip() {{ {stand_in} "$@"; }}\n{text}']
        if kind == "python":
            command = [sys.executable, "-c", text]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, cwd=self.place, env=self.environment
        )
        assert done.returncode == 0, f"{text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout


def plain(text):
    return " ".join(text.split())


def follow(document, folder, *, only_files=False):
    printed = None
    for kind, text in blocks(document):
        named = FILE_NAME.match(text)
        if named:
            folder.write(named[1], text)
            printed = None
        elif kind in RUN and not only_files:
            printed = folder.run(kind, text)
        elif kind == "text" and printed is not None:
            for line in text.splitlines():
                assert plain(line) in plain(printed), f"{document} promises {line!r}; printed was:\n{printed}"


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="the documents are written for a Unix shell")
@pytest.mark.parametrize("document", EXECUTED)
def test_what_it_says_is_so(document, tmp_path):
    folder = Folder(tmp_path)
    for earlier in EXECUTED[document]:
        follow(earlier, folder, only_files=True)
    follow(document, folder)


def test_the_others_have_nothing_to_run():
    others = {file.name for file in DOCS.glob("*.md")} - set(EXECUTED)
    assert others
    assert [name for name in others if RUN & {kind for kind, _ in blocks(name)}] == []


@pytest.mark.parametrize("file", [*sorted(DOCS.glob("*.md")), CORE / "README.md"], ids=lambda file: file.name)
def test_links_lead_somewhere(file):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", file.read_text(encoding="utf-8")):
        found = file.parent / target if target else file
        assert found.exists(), f"{file.name} links to {target}"
        if anchor:
            titles = re.findall(r"^#+ (.+)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in anchors, f"{file.name} links to {target}#{anchor}; there are {sorted(anchors)}"
