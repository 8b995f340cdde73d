# SPDX-License-Identifier: Apache-2.0
"""Options of existing scripts that do not exist here: an error that says what to say instead."""

import re

import pytest
from click.testing import CliRunner

from auto_round import AutoRound
from auto_round.cli.main import main
from auto_round.cli.quantize import quantize
from auto_round.errors import UnknownOptionError
from auto_round.option_hints import _INSTEAD, instead_of

COMMAND = {name.lstrip("-").replace("-", "_") for option in quantize.params for name in option.opts}


@pytest.mark.parametrize("option", ["enable_adam", "nblocks", "momentum", "processor"])
def test_a_script_is_told_what_to_say_instead(model_dir, option):
    with pytest.raises(
        UnknownOptionError, match=re.escape(f"AutoRound has no option {option!r}: {instead_of(option)}.")
    ):
        AutoRound(model_dir, **{option: 1})


def test_so_is_the_command(model_dir):
    told = CliRunner().invoke(main, ["quantize", str(model_dir), "--enable_adam"])
    assert told.exit_code == 2
    assert f"'--enable-adam': {instead_of('enable_adam')}.\n" in told.output
    assert "Did you mean" not in told.output


def test_what_nobody_has_heard_of_is_taken_for_misspelt(model_dir):
    with pytest.raises(UnknownOptionError, match="no option 'nsample_s'; did you mean nsamples"):
        AutoRound(model_dir, nsample_s=1)
    assert "--nsamples" in CliRunner().invoke(main, ["quantize", str(model_dir), "--nsample-s", "1"]).output


@pytest.mark.parametrize("option", sorted(_INSTEAD))
def test_no_option_of_the_command_is_called_unknown_and_what_is_recommended_exists(option):
    """So a hint goes when its option comes."""
    assert option not in COMMAND
    told = instead_of(option)
    assert not told.endswith(".")
    named = re.findall(r"\bsay (\w+)", told)
    assert set(named) <= COMMAND | {"which"}
