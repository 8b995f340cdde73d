# SPDX-License-Identifier: Apache-2.0
"""What is said while the work goes on: in logs and on terminals."""

import re

import pytest

from auto_round.run.progress import BarProgress, LineProgress
from auto_round.tuning.end_to_end import Outcome
from auto_round.tuning.result import BlockResult


def told(progress, together):
    """Two blocks of three steps each, and four of all of them together."""
    progress.start(2, 3, together=together)
    for name in ("first", "second"):
        for _ in range(3):
            progress.step()
        progress.block(BlockResult(name, (), loss_before=2.0, loss_after=1.0, kept_step=3, seconds=0.5))
    if together:
        progress.end_to_end(together, 1)
        for _ in range(together - 1):
            progress.step()
        progress.end_to_end_done(Outcome(0.5, 0.25))
    progress.close()


@pytest.mark.parametrize("together", [0, 4])
def test_a_log_has_a_line_per_block_and_what_is_still_to_come(capsys, together):
    told(LineProgress(), together)
    then = f", then {together} steps of all blocks together" if together else ""
    wanted = [
        f"[{n}/2] {name}: loss 2 -> 1 (step 3), 0.5 s, 0:00 left{then}" for n, name in [(1, "first"), (2, "second")]
    ]
    if together:
        wanted += [f"end to end: step {n} of 4, 0:00 left" for n in (2, 3, 4)] + ["end to end: divergence 0.5 -> 0.25"]
    assert capsys.readouterr().err.splitlines() == wanted


@pytest.mark.parametrize("together", [0, 4])
def test_a_terminal_has_a_bar_for_blocks_and_one_for_what_is_still_to_come(capsys, monkeypatch, together):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TTY_INTERACTIVE", "1")
    monkeypatch.setenv("COLUMNS", "100")
    told(BarProgress(), together)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    assert "second: loss 2 -> 1 (step 3), 0.5 s" in shown
    assert re.search(r"quantizing\s.*6/6", shown)
    assert bool(re.search(r"end to end\s.*4/4", shown)) == bool(together)
    if together:
        assert re.search(r"end to end\s.*0/4", shown)  # from the start
        assert "end to end: divergence 0.5 -> 0.25" in shown
