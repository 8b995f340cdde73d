# SPDX-License-Identifier: Apache-2.0
"""Runs in processes of their own, which tests may kill: a program that has everything imported and forks.

A line of JSON on standard input is a list of processes to start together; each line of the answer says how they ended.
It is a program, and no test.
"""

import importlib.util
import json
import os
import signal
import sys
import threading
import time
import traceback
from functools import partial
from pathlib import Path

import torch

from auto_round import AutoRound
from auto_round.testing.isolation import isolated

PACKAGE = str(Path(sys.modules[AutoRound.__module__].__file__).parent)
TIMEOUT = 60.0
"""Seconds after which a process is taken to hang; none takes more than a few."""


def steps_plugin():
    """The data type that core's tests share."""
    spec = importlib.util.spec_from_file_location("shared", Path(__file__).parents[1] / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.StepsPlugin()


def samples(lengths):
    """Token ids of samples of these lengths."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(4, 250, (n,), generator=generator) for n in lengths]


class Calls:
    """Counts what our own code calls, and sends this process a signal at one of these moments."""

    def __init__(self, at=0, number=signal.SIGKILL):
        self.count, self._at, self._number = 0, at, number

    def __call__(self, frame, event, _argument):
        if event in ("call", "c_call", "c_return") and frame.f_code.co_filename.startswith(PACKAGE):
            self.count += 1
            if self.count == self._at:
                os.kill(os.getpid(), self._number)

    def watch(self):
        threading.setprofile(self)
        sys.setprofile(self)


def replaced(target, nth, act):
    """Have `act` called before the n-th call of a function, named `module:function` or `module:Class.function`."""
    module, _, path = target.partition(":")
    owner, _, name = path.rpartition(".")
    holder = importlib.import_module(module)
    holder = getattr(holder, owner) if owner else holder
    original, seen = getattr(holder, name), [0]

    def stand_in(*args, **kwargs):
        seen[0] += 1
        if seen[0] == nth:
            act()
        return original(*args, **kwargs)

    setattr(holder, name, stand_in)


def fail(number):
    raise OSError(number, os.strerror(number))


def disturb(job, calls):
    """What shall happen to this process."""
    number = job.get("signal", signal.SIGKILL)
    strike = partial(os.kill, os.getpid(), number)
    if "errno" in job:
        strike = partial(fail, job["errno"])
    if "pause" in job:
        strike = partial(pause, Path(job["pause"]))
    if "before" in job:
        replaced(job["before"], job.get("nth", 1), strike)
    if "after_seconds" in job:
        timer = threading.Timer(job["after_seconds"], strike)
        timer.daemon = True
        timer.start()
    if calls is not None:
        calls.watch()


def pause(folder):
    """Say that we are there, and wait to be let go on."""
    (folder / "there").touch()
    wait_for(folder / "go")


def wait_for(file):
    while not file.exists():
        time.sleep(0.01)


def work(job, registry):
    os.environ.update(job.get("env", {}))
    calls = Calls(job.get("at_call", 0), job.get("signal", signal.SIGKILL)) if "at_call" in job else None
    dataset = samples(job["lengths"])
    options = {
        "scheme": "STEPS4", "seqlen": max(job["lengths"]), "nsamples": len(dataset), "batch_size": 4, "verbose": False,
        **job["options"],
    }  # fmt: skip
    if "compute_dtype" in options:
        options["compute_dtype"] = getattr(torch, options["compute_dtype"])
    disturb(job, calls)
    began = time.monotonic()
    run = AutoRound(job["model"], dataset=dataset, registry=registry, **options)
    if job["output"] is None:
        run.quantize()
    else:
        run.quantize_and_save(job["output"], job.get("format", "auto_round"))
    sys.setprofile(None)
    return {
        "losses": [(block.loss_before, block.loss_after) for block in run.report.blocks],
        "seconds": time.monotonic() - began,
        "calls": calls and calls.count,
        "there": job["output"] is not None and Path(job["output"]).is_dir(),
        "caches": {cache.module: float(cache.key["init_scale"]) for cache in run._caches},
    }


def child(job, registry, answer):
    # As at a terminal, whatever started these tests: a shell's background jobs ignore interruptions.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if "during" in job:
            wait_for(Path(job["during"]) / "there")
        told = work(job, registry)
    except BaseException as error:  # noqa: BLE001 - whatever ends it is what the test wants to know
        sys.setprofile(None)
        told = {"error": type(error).__name__, "message": str(error), "trace": traceback.format_exc()}
    answer.write_text(json.dumps(told))
    if "during" in job:
        (Path(job["during"]) / "go").touch()
    sys.stdout.flush()
    os._exit("error" in told)


def ended(processes, answers):
    """How each process ended, in the order of the answers."""
    until, statuses, hung = time.monotonic() + TIMEOUT, {}, False
    while len(statuses) < len(processes):
        for process in processes:
            if process not in statuses:
                found, status = os.waitpid(process, os.WNOHANG)
                if found:
                    statuses[process] = status
                elif time.monotonic() > until:
                    hung = True
                    os.kill(process, signal.SIGKILL)
        time.sleep(0.005)
    for process, answer in zip(processes, answers, strict=True):
        status = statuses[process]
        told = json.loads(answer.read_text()) if answer.exists() else {}
        yield {"signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, "hung": hung, **told}


def main(folder, model):
    torch.set_num_threads(1)
    with isolated() as registry:
        registry.register(steps_plugin(), name="steps")
        # Everything that is imported late is imported here, once.
        work({"model": model, "output": str(folder / "first"), "lengths": [4], "options": {"iters": 1}}, registry)
        print("ready", flush=True)
        serve(folder, registry)


def serve(folder, registry):
    for number, line in enumerate(sys.stdin):
        jobs, processes = json.loads(line), []
        answers = [folder / f"{number}-{n}.json" for n in range(len(jobs))]
        for job, answer in zip(jobs, answers, strict=True):
            process = os.fork()
            if not process:
                child(job, registry, answer)
            processes.append(process)
        print(json.dumps(list(ended(processes, answers))), flush=True)


def once(job):
    """One run, in this process."""
    with isolated() as registry:
        registry.register(steps_plugin(), name="steps")
        work(job, registry)


if __name__ == "__main__":
    if sys.argv[1] == "once":
        once(json.loads(sys.argv[2]))
    else:
        main(Path(sys.argv[1]), sys.argv[2])
