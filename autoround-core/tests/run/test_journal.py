# SPDX-License-Identifier: Apache-2.0
"""Runs that are cut off at any moment, and the same command again: the files are those of an undisturbed run."""

import errno
import random
import signal
import subprocess

import pytest

pytestmark = pytest.mark.slow

BASE = {"iters": 6, "bits": 3, "lr": 0.1, "low_cpu_mem_usage": True}
KINDS = {
    "tuned": BASE,
    "kept": {**BASE, "low_cpu_mem_usage": False},
    "lm_head": {**BASE, "quant_lm_head": True},
    "best": {**BASE, "recipe": "best"},
    "searched": {**BASE, "iters": 0},
    "compensated": {**BASE, "iters": 0, "recipe": "best"},
    "together": {**BASE, "iters": 3, "recipe": "best", "e2e_iters": 3},
    "rounded": {**BASE, "iters": 0, "disable_opt_rtn": True, "workers": 1},
}


@pytest.fixture(scope="session")
def undisturbed(processes, content, tmp_path_factory):
    """What a run that nothing happens to writes, and how many calls of ours it takes; made once for each kind."""
    known = {}

    def of(kind):
        if kind not in known:
            output = tmp_path_factory.mktemp("undisturbed") / "out"
            told = processes.run(output, options=KINDS[kind], at_call=0)
            assert "error" not in told, told
            known[kind] = content(output), told["calls"], told["losses"]
        return known[kind]

    return of


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def cut_off(processes, output):
    """A run of some kind that something happens to; says how it ended."""
    return lambda kind="tuned", **job: processes.run(output, **{"options": KINDS[kind], **job})


@pytest.fixture
def again(processes, output, content):
    """The same command; returns what it wrote."""

    def run(kind="tuned", **job):
        told = processes.run(output, **{"options": KINDS[kind], **job})
        assert "error" not in told, told
        assert not told["signal"]
        assert not output.with_name("out.unfinished").exists()
        return content(output)

    return run


def unfinished(output):
    return sorted(file.name for file in output.with_name("out.unfinished").rglob("*"))


def test_tuning_decides_something(undisturbed):
    """Were no step ever kept, a run that forgets what was learnt would write the same bytes."""
    _, _, losses = undisturbed("tuned")
    assert all(after < before for before, after in losses)


@pytest.mark.parametrize("kind", ["kept", "searched", "rounded"])
def test_runs_of_one_kind_write_the_same(undisturbed, again, kind):
    assert again(kind) == undisturbed(kind)[0]


MOMENTS = [(kind, moment) for kind in KINDS for moment in range(4)]


@pytest.mark.parametrize(("kind", "moment"), MOMENTS, ids=[f"{kind}-{moment}" for kind, moment in MOMENTS])
def test_killed_at_a_random_moment(undisturbed, cut_off, again, output, content, kind, moment):
    files, calls, _ = undisturbed(kind)
    # One moment in each quarter of a run, counted in calls of our code, so that it may lie between any two of them.
    at = int(random.Random(f"{kind} {moment}").uniform(moment, moment + 1) * calls / 4) + 1
    assert cut_off(kind, at_call=at)["signal"] == signal.SIGKILL
    if output.exists():  # killed while it cleaned up
        assert content(output) == files
    else:
        assert again(kind) == files


@pytest.mark.parametrize("part", [0.2, 0.5, 0.8])
def test_killed_by_the_clock(undisturbed, processes, cut_off, again, tmp_path, part):
    """Within a call, too: while torch computes or the system writes."""
    seconds = processes.run(tmp_path / "other", options=KINDS["tuned"])["seconds"]
    cut_off(after_seconds=seconds * part)  # a machine that is suddenly faster finishes, which is no harm
    if not (tmp_path / "out").exists():
        assert again() == undisturbed("tuned")[0]


WRITING = {
    "before the journal": ("auto_round.run.journal:_write", 1),
    "a part's tensors": ("auto_round.run.journal:save_file", 2),
    "between a part's tensors and its facts": ("auto_round.run.journal:_write", 3),
    "before old activations go": ("auto_round.calibration.store:ActivationStore.keep", 3),
    "within a shard": ("os:sendfile", 20),
    "before the config": ("auto_round.export.checkpoint:CheckpointExporter._write_config", 1),
    "before the output has its name": ("pathlib:Path.rename", 2),
}


@pytest.mark.parametrize("moment", WRITING)
def test_killed_while_writing(undisturbed, cut_off, again, output, moment):
    target, nth = WRITING[moment]
    assert cut_off(before=target, nth=nth)["signal"] == signal.SIGKILL
    assert not output.exists()
    assert output.with_name("out.unfinished").exists()
    assert again() == undisturbed("tuned")[0]


def test_killed_after_every_part(undisturbed, cut_off, again, output):
    for part in range(2):
        assert cut_off(before="auto_round.run.journal:Journal.add", nth=2)["signal"] == signal.SIGKILL
        assert [name for name in unfinished(output) if name.endswith(".json") and name.startswith("part")] == [
            f"part-{n:06d}.json" for n in range(part + 1)
        ]
    assert again() == undisturbed("tuned")[0]


def test_a_finished_part_is_not_done_twice(cut_off):
    """Otherwise the bytes would be the same, and nothing gained."""
    step = "auto_round.run.progress:SilentProgress.step"
    assert cut_off(before="auto_round.run.journal:Journal.add", nth=3)["signal"] == signal.SIGKILL
    # One block of three is left, of six steps each.
    assert cut_off(before=step, nth=7)["signal"] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("kind", ["tuned", "rounded"])
def test_other_signals(undisturbed, cut_off, again, kind, number):
    told = cut_off(kind, at_call=int(undisturbed(kind)[1] * 0.8), signal=number)
    assert told["signal"] == number or told["error"] == "KeyboardInterrupt"
    assert again(kind) == undisturbed(kind)[0]


def test_an_interruption_before_anything_is_finished_leaves_nothing(cut_off, tmp_path):
    told = cut_off(before="auto_round.tuning.signround:sign_step", nth=2, signal=signal.SIGINT)
    assert told["error"] == "KeyboardInterrupt"
    assert list(tmp_path.iterdir()) == []


# What lies there may be damaged


def cut_short(file):
    file.write_bytes(file.read_bytes()[:-9])


def flip(file):
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)


def garble(file):
    file.write_text("{")


def remove(file):
    file.unlink()


@pytest.mark.parametrize("damage", [cut_short, flip, remove])
@pytest.mark.parametrize("pattern", ["part-000000.safetensors", "*.activations", "run.json"])
def test_a_damaged_file_is_named(undisturbed, processes, cut_off, again, output, pattern, damage):
    cut_off(before="auto_round.run.journal:Journal.add", nth=3)
    file = min(output.with_name("out.unfinished").rglob(pattern))
    (garble if pattern == "run.json" and damage is flip else damage)(file)
    told = processes.run(output, options=KINDS["tuned"])
    assert told["error"] == "OutputError"
    assert file.name in told["message"]
    assert "--restart" in told["message"]
    assert again(options={**KINDS["tuned"], "restart": True}) == undisturbed("tuned")[0]


def test_garbled_facts_are_named(cut_off, output):
    cut_off(before="auto_round.run.journal:Journal.add", nth=3)
    (output.with_name("out.unfinished") / "journal/part-000000.json").write_text("[]")
    told = cut_off()
    assert told["error"] == "OutputError"
    assert "part-000000.json cannot be read" in told["message"]


@pytest.mark.parametrize("facts", ["[]", "{}", '{"step": 3, "file": "steps-000003.safetensors", "sums": 1}'])
def test_garbled_facts_of_steps_of_all_blocks_are_named(cut_off, output, facts):
    cut_off("together", before="auto_round.export.checkpoint:CheckpointExporter._write_config")
    (output.with_name("out.unfinished") / "journal/steps.json").write_text(facts)
    told = cut_off("together")
    assert told["error"] == "OutputError"
    assert "steps.json cannot be read" in told["message"]


# Another command


DIFFERENT = {
    "iters: 6, not 7": {"options": {**BASE, "iters": 7}},
    "seed: 42, not 43": {"options": {**BASE, "seed": 43}},
    "search: True, not False": {"options": {**BASE, "disable_opt_rtn": True}},
    "bits=3": {"options": {**BASE, "bits": 5}},
    "layer lm_head: nothing, not steps": {"options": {**BASE, "quant_lm_head": True}},
    "formats: auto_round, not fake": {"format": "fake"},
    "calibration data": {"lengths": [15] * 8},
}


@pytest.mark.parametrize("difference", DIFFERENT)
def test_another_command_is_refused(undisturbed, cut_off, again, output, content, difference):
    cut_off(before="auto_round.run.journal:Journal.add", nth=2)
    before = content(output.with_name("out.unfinished") / "journal")
    told = cut_off(**DIFFERENT[difference])
    assert told["error"] == "OutputError"
    assert difference in told["message"]
    assert "--restart" in told["message"]
    after = content(output.with_name("out.unfinished") / "journal")
    # Activations of the block that was at work when it was cut off belong to nothing.
    assert {name: data for name, data in before.items() if name in after} == after
    assert {name for name in before if name not in after and not name.endswith(".activations")} == set()
    assert again() == undisturbed("tuned")[0]


def test_other_weights_are_refused(processes, cut_off, small_model, output, tmp_path):
    other = tmp_path / "model"
    other.mkdir()
    for file in small_model.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    cut_off(model=str(other), before="auto_round.run.journal:Journal.add", nth=2)
    flip(other / "model.safetensors")
    told = cut_off(model=str(other))
    assert told["error"] == "OutputError"
    assert "file model.safetensors" in told["message"]


def test_options_that_decide_nothing_may_change(undisturbed, cut_off, again):
    cut_off("rounded", before="auto_round.run.journal:Journal.add", nth=3)
    options = {**KINDS["rounded"], "workers": 3, "low_cpu_mem_usage": False}
    assert again(options=options) == undisturbed("rounded")[0]


def test_who_ran_out_of_memory_goes_on_with_less(undisturbed, cut_off, again):
    cut_off(before="auto_round.run.journal:Journal.add", nth=3)
    assert again(options={**KINDS["tuned"], "low_memory": True}) == undisturbed("tuned")[0]


@pytest.mark.parametrize("kind", ["tuned", "searched"])
def test_where_activations_live_decides_nothing(undisturbed, cut_off, again, kind):
    """Every finished part has them on disk, and whoever goes on may keep them elsewhere."""
    wheres = ("cpu", "device", "disk", None)
    for part, where in enumerate(wheres[:2]):
        told = cut_off(
            kind, options={**KINDS[kind], "activations": where}, before="auto_round.run.journal:Journal.add", nth=2
        )
        assert told["signal"] == signal.SIGKILL, part
    assert again(options={**KINDS[kind], "activations": "disk"}) == undisturbed(kind)[0]


@pytest.mark.parametrize("where", ["cpu", "device", "disk"])
@pytest.mark.parametrize("resume", [True, False])
def test_activations_where_asked(undisturbed, again, where, resume):
    options = {**KINDS["lm_head"], "activations": where, "resume": resume}
    assert again(options=options) == undisturbed("lm_head")[0]


def test_restart_starts_anew(undisturbed, cut_off, again):
    cut_off(before="auto_round.run.journal:Journal.add", nth=3)
    restarted = {**KINDS["searched"], "restart": True}
    assert again(options=restarted) == undisturbed("searched")[0]


def test_what_has_finished_nothing_is_no_obstacle(undisturbed, cut_off, again):
    cut_off("tuned", before="auto_round.run.journal:Journal.add", nth=1)
    assert again("searched") == undisturbed("searched")[0]


def test_no_journal_on_request(undisturbed, cut_off, again, output):
    options = {**KINDS["tuned"], "resume": False}
    cut_off(options=options, before="auto_round.export.checkpoint:CheckpointExporter.finish")
    assert not [name for name in unfinished(output) if name.startswith(("part-", "run"))]
    assert again(options=options) == undisturbed("tuned")[0]


# Two at once


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("nth", [1, 3])
def test_two_at_once(undisturbed, processes, content, output, tmp_path, restart, nth):
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    first, second = processes.together(
        {"output": output, "options": BASE, "before": "auto_round.run.journal:Journal.add", "nth": nth,
         "pause": meeting},
        {"output": output, "options": {**BASE, "restart": restart}, "during": meeting},
    )  # fmt: skip
    assert second["error"] == "OutputError"
    assert "another run is writing into" in second["message"]
    assert "error" not in first, first
    assert content(output) == undisturbed("tuned")[0]


def test_a_complete_output_is_not_touched(undisturbed, cut_off, output, content):
    # Killed after the output had its name and before what is beside it was gone.
    assert cut_off(before="shutil:rmtree", nth=1)["signal"] == signal.SIGKILL
    for options in (BASE, {**BASE, "restart": True}, {**BASE, "iters": 2}):
        told = cut_off(options=options)
        assert told["error"] == "OutputError"
        assert "not empty" in told["message"]
        assert content(output) == undisturbed("tuned")[0]


# No room


FULL = {
    "the journal begins": ("auto_round.run.journal:_write", 1),
    "activations": ("auto_round.calibration.store:_reserve", 4),
    "a part": ("auto_round.run.journal:save_file", 2),
    "facts of a part": ("auto_round.run.journal:_write", 3),
    "a tensor": ("auto_round.export.shards:ShardWriter.add", 25),
    "a shard": ("os:sendfile", 5),
    "config": ("auto_round.export.checkpoint:CheckpointExporter._write_config", 1),
    "other files": ("shutil:copyfile", 1),
    "the name": ("pathlib:Path.rename", 2),
}


@pytest.mark.parametrize("place", FULL)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_writing_fails(undisturbed, cut_off, again, output, tmp_path, place, number):
    target, nth = FULL[place]
    told = cut_off(before=target, nth=nth, errno=number)
    assert told["error"] == "OutputError"
    assert ("is full" if number == errno.ENOSPC else "Input/output error") in told["message"]
    assert not output.exists()
    if place == "the journal begins":
        assert "nothing was left behind" in told["message"]
        assert list(tmp_path.iterdir()) == []
    else:
        assert f"kept in {output}.unfinished, and the same command goes on" in told["message"]
        assert not output.with_name("out.unfinished").joinpath("files").exists()
    assert again() == undisturbed("tuned")[0]


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own, and what gives it another size; only where this process may make one."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def resize(size, *more):
        options = ",".join([f"size={size}k", *more])
        command = ["mount", "-t", "tmpfs", "-o", options, "none", disk]
        return subprocess.run(command, check=False, capture_output=True).returncode

    try:
        refused = resize(64)
    except FileNotFoundError:
        refused = True
    if refused:
        pytest.skip("no disk can be made here")
    yield disk, lambda size: resize(size, "remount")
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("kind", ["tuned", "rounded"])
def test_a_disk_that_is_full(undisturbed, processes, content, small_disk, kind):
    disk, resize = small_disk
    files, seen = undisturbed(kind)[0], set()
    needed = sum(len(data) for data in files.values()) // 1024
    # The journal takes about as much as the output, activations and a second copy of a shard the rest.
    for size in range(needed, 4 * needed, 16):
        resize(size)
        told = processes.run(disk / "out", options=KINDS[kind])
        if "error" not in told:
            break
        assert told["signal"] == 0
        assert told["error"] == "OutputError"
        seen.add("needs" if "free and the output needs" in told["message"] else "full")
        assert ("free and the output needs" in told["message"]) != ("is full; " in told["message"])
        assert not (disk / "out").exists()
    assert seen == {"needs", "full"}
    assert content(disk / "out") == files
