# SPDX-License-Identifier: Apache-2.0
"""Several processes that share a run: the result of one, up to the order of sums; and what happens when one is lost."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

TUNED = {"iters": 20, "bits": 3, "lr": 0.05}
SEARCHED = {"iters": 0}
ROUNDED = {"iters": 0, "disable_opt_rtn": True, "workers": 1}


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture
def ranks(processes):
    """Start a run in several processes; returns how each ended. `disturbed` says what happens to some of them."""

    def run(output, size=2, disturbed=None, **job):
        port = str(free_port())
        base = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(size)}
        jobs = [
            {"output": output, "env": {**base, "RANK": str(rank)}, **job, **(disturbed or {}).get(rank, {})}
            for rank in range(size)
        ]
        return processes.together(*jobs)

    return run


def assert_fine(*ends):
    for end in ends:
        assert "error" not in end, end["trace"]
        assert not end["signal"]


def codes(folder):
    return {n: t for n, t in load_file(Path(folder) / "model.safetensors").items() if n.endswith("codes_codes")}


def differing(one, other):
    """Part of the codes that differ, and by how much at most."""
    first, second = codes(one), codes(other)
    assert first.keys() == second.keys()
    away = torch.cat([(first[n].int() - second[n].int()).abs().flatten() for n in first])
    return (away != 0).float().mean().item(), away.max().item()


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("options", [ROUNDED, {**ROUNDED, "workers": 2}, {**ROUNDED, "quant_lm_head": True}])
def test_rounding_gives_the_same_bytes(ranks, processes, content, tmp_path, size, options):
    assert_fine(processes.run(tmp_path / "one", options=options))
    ends = ranks(tmp_path / "many", size, options=options)
    assert_fine(*ends)
    assert all(end["there"] for end in ends)  # for every process, when it is done
    assert content(tmp_path / "many") == content(tmp_path / "one")


def test_rounding_experts_gives_the_same_bytes(ranks, processes, stored, content, tmp_path):
    for architecture in ("qwen3_moe", "mixtral"):
        job = {"model": stored(architecture), "options": ROUNDED}
        assert_fine(processes.run(tmp_path / f"{architecture}-one", **job))
        assert_fine(*ranks(tmp_path / architecture, **job))
        assert content(tmp_path / architecture) == content(tmp_path / f"{architecture}-one")


@pytest.mark.parametrize("lengths", [[16] * 8, [16, 15, 14, 16, 13, 16, 9]], ids=["equal", "masked"])
def test_a_search_with_calibration(ranks, processes, tmp_path, lengths):
    """Importance is a sum over tokens: each process adds its own, in float32."""
    assert_fine(processes.run(tmp_path / "one", options=SEARCHED, lengths=lengths))
    assert_fine(*ranks(tmp_path / "two", options=SEARCHED, lengths=lengths))
    # The data type of these tests searches without importance: codes hang on the activations of nobody.
    assert differing(tmp_path / "one", tmp_path / "two") == (0.0, 0)


CASES = {
    "equal": {"lengths": [16] * 8},
    "masked": {"lengths": [16, 15, 14, 16, 13, 16, 9, 11]},
    "odd number of samples": {"lengths": [16, 12, 16, 16, 16, 16, 10]},
    "odd batches": {"lengths": [16] * 8, "options": {**TUNED, "batch_size": 3}},
    "a batch for one process alone": {"lengths": [16] * 5, "options": {**TUNED, "batch_size": 1}},
    "all samples in a batch": {"lengths": [16] * 6, "options": {**TUNED, "batch_size": 8}},
    "several passes a step": {"lengths": [16] * 8, "options": {**TUNED, "gradient_accumulate_steps": 2}},
    "compensated": {"lengths": [16] * 8, "options": {**TUNED, "iters": 0, "recipe": "best"}},
}


@pytest.mark.parametrize("case", CASES)
def test_tuning_is_that_of_one_process(ranks, processes, tmp_path, case):
    job = {"options": TUNED, **CASES[case]}
    # In float32, where the order of sums is all that differs.
    job["options"] = {**job["options"], "compute_dtype": "float32"}
    one = processes.run(tmp_path / "one", **job)
    ends = ranks(tmp_path / "two", **job)
    assert_fine(one, *ends)
    assert ends[0]["losses"] == ends[1]["losses"]  # what they decide by is the same on both, to the bit
    part, away = differing(tmp_path / "one", tmp_path / "two")
    print(case, part, away, one["losses"], ends[0]["losses"])


def test_tuning_twice_gives_the_same_bytes(ranks, content, tmp_path):
    for name in ("first", "second"):
        assert_fine(*ranks(tmp_path / name, options=TUNED))
    assert content(tmp_path / "first") == content(tmp_path / "second")


@pytest.mark.parametrize("batch_size", [4, 8])
def test_keys_and_values(ranks, processes, batch_size):
    """With all samples in one batch, one of the processes sees none of them, and must not wait for ever."""
    options = {"iters": 0, "static_kv_dtype": "steps", "batch_size": batch_size}
    one = processes.run(None, options=options)
    ends = ranks(None, options=options)
    assert_fine(one, *ends)
    assert len(one["caches"]) == 3
    # The greatest of the same numbers, whoever saw it.
    assert ends[0]["caches"] == ends[1]["caches"] == one["caches"]


def test_activations_with_fixed_scales(ranks, processes, content, tmp_path):
    """One process sees none of the samples; ranges are the least and greatest of all."""
    options = {
        **SEARCHED, "batch_size": 8, "act_bits": 6, "act_group_size": -1, "act_data_type": "steps", "act_dynamic": False
    }  # fmt: skip
    assert_fine(processes.run(tmp_path / "one", options=options), *ranks(tmp_path / "two", options=options))
    assert content(tmp_path / "one") == content(tmp_path / "two")


# Lost processes


STEP = "auto_round.tuning.signround:sign_step"
LOST = {
    "while tuning": (TUNED, STEP, 50),
    "before the first step": (TUNED, STEP, 1),
    "while observing": (TUNED, "auto_round.calibration.observer:InputObserver.gather", 2),
    "while rounding": (ROUNDED, "auto_round.tuning.rounding:round_layers", 4),
}


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("moment", LOST)
def test_a_process_is_lost(ranks, content, tmp_path, moment, lost):
    options, target, nth = LOST[moment]
    assert_fine(*ranks(tmp_path / "undisturbed", options=options))
    ends = ranks(tmp_path / "out", options=options, disturbed={lost: {"before": target, "nth": nth}})
    assert ends[lost]["signal"] == signal.SIGKILL
    left = ends[1 - lost]
    assert left["error"] == "AutoRoundError", left
    assert "another process of this run was lost" in left["message"]
    assert "the same command goes on" in left["message"]
    assert not (tmp_path / "out").exists()
    assert_fine(*ranks(tmp_path / "out", options=options))
    assert content(tmp_path / "out") == content(tmp_path / "undisturbed")


def test_it_goes_on_from_the_journal(ranks, content, tmp_path):
    assert_fine(*ranks(tmp_path / "undisturbed", options=TUNED))
    ranks(tmp_path / "out", options=TUNED, disturbed={1: {"before": STEP, "nth": 45}})
    parts = list((tmp_path / "out.unfinished/journal").glob("part-*.json"))
    assert len(parts) == 2
    # 20 steps are left of 60: a 21st would end it.
    assert_fine(*ranks(tmp_path / "out", options=TUNED, disturbed={0: {"before": STEP, "nth": 21}}))
    assert content(tmp_path / "out") == content(tmp_path / "undisturbed")


def test_a_failure_of_one_ends_all(ranks, tmp_path):
    full = {"before": "auto_round.run.journal:save_file", "nth": 2, "errno": errno.ENOSPC}
    writes, other = ranks(tmp_path / "out", options=TUNED, disturbed={0: full})
    assert writes["error"] == "OutputError"
    assert "is full" in writes["message"]
    assert other["error"] == "AutoRoundError"
    assert "lost" in other["message"]


def test_another_number_of_processes_is_refused(ranks, processes, tmp_path):
    ranks(tmp_path / "out", options=TUNED, disturbed={1: {"before": STEP, "nth": 45}})
    told = processes.run(tmp_path / "out", options=TUNED)
    assert told["error"] == "OutputError"
    assert "processes: 2, not 1" in told["message"]


def test_steps_of_all_blocks_are_for_one_process(ranks, tmp_path):
    for told in ranks(tmp_path / "out", options={**TUNED, "e2e_iters": 2}):
        assert told["error"] == "UnknownOptionError"
        assert "one process" in told["message"]
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_connected(processes, tmp_path):
    told = processes.run(tmp_path / "out", options=ROUNDED, env={"WORLD_SIZE": "2", "RANK": "0"})
    assert told["error"] == "AutoRoundError"
    assert "cannot be connected" in told["message"]


def test_torchrun(processes, content, small_model, tmp_path):
    """The same, started as people start it."""
    assert_fine(processes.run(tmp_path / "one", options=ROUNDED))
    job = {"model": str(small_model), "output": str(tmp_path / "two"), "lengths": [4], "options": ROUNDED}
    program = str(Path(__file__).parent / "started.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    subprocess.run([*launcher, program, "once", json.dumps(job)], check=True, env=environment, capture_output=True)
    assert content(tmp_path / "two") == content(tmp_path / "one")
