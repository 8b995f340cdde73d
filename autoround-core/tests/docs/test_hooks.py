# SPDX-License-Identifier: Apache-2.0
import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("generate_hooks", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_what_the_sources_say(generate):
    written = (DOCS / "hooks.md").read_text(encoding="utf-8")
    assert written == generate.document(), "run: python autoround-core/docs/generate.py"


def test_it_holds_every_hook_and_everything_that_can_be_asked_for(generate):
    from auto_round.data_type import DataType
    from auto_round.data_type.register import OFFERS
    from auto_round.plugins.loading import HOOKS

    text = generate.document()
    methods = [name for name, member in vars(DataType).items() if callable(member) and name[0] != "_"]
    assert methods
    wanted = [f"### {hook}\n" for hook in HOOKS] + [f"| `{offer}` |" for offer in OFFERS]
    wanted += [f"### DataType.{method}\n" for method in methods]
    assert [part for part in wanted if part not in text] == []


def test_sections_of_a_docstring_become_lists(generate):
    def function():
        """What it does.

        Args:
            one, two: a pair
                of lines.

        Returns:
            a thing,
            told at length.

        Raises:
            ValueError: never.
        """

    assert list(generate.prose(function.__doc__)) == [
        "What it does.",
        "",
        "- `one`, `two`: a pair",
        "  of lines.",
        "",
        "Returns a thing,",
        "told at length.",
        "",
        "- Raises `ValueError`: never.",
    ]
