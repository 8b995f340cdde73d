# SPDX-License-Identifier: Apache-2.0
"""Kernels run as they stand, and are compiled where that was asked for."""

import os
import subprocess
import sys

import pytest
import torch

from auto_round import AutoRound
from auto_round.data_type.binades import powers_below
from auto_round.data_type.kernels import Room, at_once, check_compiler, chunks, compilable, kernels_compiled
from auto_round.data_type.magnitudes import largest_magnitudes
from auto_round.errors import UnknownOptionError

from .conftest import Steps

IGNORED = pytest.mark.filterwarnings("ignore:::torch")  # its compiler uses what it warns of


@pytest.fixture
def compiled(monkeypatch):
    """What was given to the compiler, which leaves it as it stands here."""
    given = []

    def noted(kernel):
        given.append(kernel)
        return kernel

    monkeypatch.setattr(torch, "compile", noted)
    return given


def test_kernels_are_compiled_where_that_is_wanted_once_and_only_there(compiled):
    kernel = compilable(lambda x: x + 1)
    kernel(torch.zeros(2))
    with kernels_compiled(wanted=False):
        kernel(torch.zeros(2))
    assert not compiled
    with kernels_compiled():
        kernel(torch.zeros(2))
        assert kernel(torch.ones(2)).tolist() == [2, 2]
    assert len(compiled) == 1
    kernel(torch.zeros(2))
    assert len(compiled) == 1


@pytest.fixture
def kernel_of_steps(monkeypatch):
    """A kernel that the data type `steps` calls whenever it rounds."""
    kernel = compilable(lambda x: x)
    plain = Steps._codes

    def codes(self, tensor, *args):
        kernel(tensor.detach())
        return plain(self, tensor, *args)

    monkeypatch.setattr(Steps, "_codes", codes)
    return kernel


ROADS = ({"iters": 1, "nsamples": 2}, {"iters": 0, "disable_opt_rtn": True, "workers": 2})


@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("options", ROADS)
def test_the_option_reaches_every_road(compiled, kernel_of_steps, model_dir, registry, tokens, options, wanted):
    told = {"scheme": "STEPS4", "dataset": tokens, "registry": registry, "verbose": False, **options}
    AutoRound(model_dir, enable_torch_compile=wanted, **told).quantize()
    assert (kernel_of_steps.__wrapped__ in compiled) == wanted


def test_chunks_have_about_so_many_numbers_and_compiled_code_takes_all(monkeypatch):
    tensor = torch.zeros(10, 3, 2)
    assert list(chunks(tensor, 25)) == [slice(0, 5), slice(5, 10)]
    assert list(chunks(tensor, 15)) == [slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 10)]
    assert list(chunks(tensor, 41)) == [slice(0, 10)]
    assert list(chunks(tensor, 1)) == [slice(row, row + 1) for row in range(10)]
    assert list(chunks(tensor[:0], 25)) == []
    assert list(chunks(tensor.to("meta"), 25)) == [slice(0, 10)]
    assert list(chunks(tensor[:0].to("meta"), 25)) == []
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert list(chunks(tensor, 25)) == [slice(0, 10)]


def test_room_is_made_once_for_each_purpose():
    room, chunk = Room(), torch.zeros(4, 3, dtype=torch.bfloat16)
    first = room.like(chunk, "x")
    assert (first.shape, first.dtype) == (chunk.shape, torch.float32)
    assert room.like(chunk[:2], "x").data_ptr() == first.data_ptr()
    assert room.like(chunk[:2], "x").shape == (2, 3)
    assert room.like(chunk, "codes", torch.uint8).dtype == torch.uint8
    assert room.like(torch.zeros(5, 3), "x").shape == (5, 3)


def test_all_is_taken_at_once_where_it_is_compiled():
    assert not at_once(torch.zeros(1))
    assert at_once(torch.zeros(1, device="meta"))
    with kernels_compiled():
        assert at_once(torch.zeros(1))


@IGNORED
@pytest.mark.slow
def test_a_compiled_kernel_gives_what_it_gives_as_it_stands():
    @compilable
    def kernel(x, scale):
        assert not torch.is_grad_enabled()
        return (x / scale).round_().mul_(scale), torch.compiler.is_compiling()

    generator = torch.Generator().manual_seed(0)
    for rows in (6, 10):
        x, scale = (torch.randn(rows, width, generator=generator) for width in (33, 1))
        with torch.no_grad():
            plain, is_compiled = kernel(x, scale)
        assert not is_compiled
        with kernels_compiled():
            found, is_compiled = kernel(x, scale)
        assert is_compiled
        assert torch.equal(found, plain)


@IGNORED
@pytest.mark.slow
def test_a_kernel_is_compiled_once_for_any_number_of_rows(monkeypatch):
    compiler, forms = torch.compile, []

    def as_traced(graph, _):
        forms.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda kernel: compiler(kernel, backend=as_traced))

    @compilable
    def kernel(x, *, out):
        for rows in chunks(x, 16):
            torch.mul(x[rows], 2, out=out[rows])
        return out

    with kernels_compiled():
        for rows in range(2, 20):  # torch leaves a kernel as it stands from its ninth form on
            x = torch.randn(rows, 8)
            assert torch.equal(kernel(x, out=torch.empty_like(x)), x * 2)
    assert len(forms) == 1


@pytest.mark.parametrize(("least", "most"), [(0, 2), (-6, 8), (-14, 15)])
def test_powers_of_two_below_numbers(monkeypatch, least, most):
    exponents, largest = torch.arange(least - 3, most + 1), 1.5 * 2.0**most
    edges = torch.exp2(exponents.double()).float()
    x = torch.cat([edges, torch.nextafter(edges, torch.zeros(1)), edges * 1.999, torch.zeros(1)])
    x = torch.cat([x, -x])
    wanted = torch.exp2(torch.frexp(x.abs()).exponent - 1.0).clamp(min=2.0**least)
    wanted[x == 0] = 2.0**least
    assert torch.equal(powers_below(x, least, largest), wanted)
    out = torch.empty_like(x)
    assert powers_below(x, least, largest, out) is out
    assert torch.equal(out, wanted)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(powers_below(x, least, largest), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("over", "numbers"), [((1,), 50), ((1,), 1 << 20), ((1, 3), 200), ((0, 1, 2, 3), 1 << 20)])
def test_the_largest_magnitudes_of_groups(dtype, over, numbers):
    groups = torch.randn(7, 5, 4, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    groups[3] = -0.0
    wanted = groups.float().abs().amax(over, keepdim=True)
    assert torch.equal(largest_magnitudes(groups, over, numbers), wanted)
    assert largest_magnitudes(groups[:0], over, numbers).shape == (int(0 in over), *wanted.shape[1:])
    groups[2] = torch.nan
    assert largest_magnitudes(groups, (1, 2, 3), numbers).isnan().flatten().tolist() == [n == 2 for n in range(7)]


def test_devices_whose_compiled_code_rounds_otherwise_are_refused():
    with pytest.raises(UnknownOptionError, match="enable_torch_compile is for CPUs, not for cuda"):
        check_compiler(torch.device("cuda"))


@pytest.mark.slow
def test_without_a_compiler_a_run_says_so_before_it_begins(model_dir, tmp_path):
    environment = {**os.environ, "CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    program = (
        "import torch; from auto_round.data_type.kernels import check_compiler; check_compiler(torch.device('cpu'))"
    )
    told = subprocess.run(
        [sys.executable, "-c", program], env={**environment, "PATH": ""}, capture_output=True, text=True, check=False
    )
    assert told.returncode == 1
    last = told.stderr.strip().splitlines()[-1]
    assert "UnknownOptionError: enable_torch_compile needs a C++ compiler that torch finds, g++ or the one that" in last
