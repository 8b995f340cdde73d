# SPDX-License-Identifier: Apache-2.0
"""Every value of small floats, every tie between two, and what lies next to them, against `ml_dtypes`.

Both ways are looked at: as it stands, and the one that compiled code goes, here not compiled.
"""

import ml_dtypes
import numpy as np
import pytest
import torch

from auto_round.data_type.float8 import float8_codes, float8_values
from auto_round.data_type.kernels import Room
from auto_round.data_type.minifloats import minifloat_codes, minifloat_values, round_to_minifloat_

# The dtype, bits, bits of the mantissa, exponent of the smallest normal value, largest value.
FORMATS = (
    (ml_dtypes.float4_e2m1fn, 4, 1, 0, 6.0),
    (ml_dtypes.float6_e2m3fn, 6, 3, 0, 7.5),
    (ml_dtypes.float6_e3m2fn, 6, 2, -2, 28.0),
    (ml_dtypes.float8_e4m3fn, 8, 3, -6, 448.0),
    (ml_dtypes.float8_e5m2, 8, 2, -14, 57344.0),
    (ml_dtypes.float8_e4m3fnuz, 8, 3, -7, 240.0),
)
OF_TORCH = {
    ml_dtypes.float8_e4m3fn: torch.float8_e4m3fn,
    ml_dtypes.float8_e5m2: torch.float8_e5m2,
    ml_dtypes.float8_e4m3fnuz: torch.float8_e4m3fnuz,
}
BY_NAME = pytest.mark.parametrize("found", FORMATS, ids=lambda f: f[0].__name__)


@pytest.fixture(params=[False, True], ids=["as it stands", "compiled"], autouse=True)
def way(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)


def numbers(dtype, bits, largest):
    """All of the format's finite values, ties, neighbours of both, and a million in between."""
    values = np.arange(1 << bits, dtype=np.uint8).view(dtype).astype(np.float32)
    values = np.unique(values[np.isfinite(values) & (np.abs(values) <= largest)])
    points = np.concatenate([values, (values[1:] + values[:-1]) / 2])
    points = np.concatenate([points, *(np.nextafter(points, np.float32(end)) for end in (np.inf, -np.inf))])
    drawn = np.random.default_rng(0)
    sizes = np.exp2(drawn.uniform(-30, np.log2(largest), 1_000_000)) * drawn.choice([-1.0, 1.0], 1_000_000)
    return np.clip(np.concatenate([points, sizes.astype(np.float32), [1e-45, -1e-45]]), -largest, largest)


@BY_NAME
def test_rounding_and_codes(found):
    dtype, bits, mantissa_bits, smallest_exponent, largest = found
    x = numbers(dtype, bits, largest).astype(np.float32)
    cast = x.astype(dtype)
    rounded = round_to_minifloat_(torch.from_numpy(x.copy()), mantissa_bits, smallest_exponent, largest)
    wanted = torch.from_numpy(cast.astype(np.float32))
    assert torch.equal(rounded, wanted)
    assert not rounded[rounded == 0].signbit().any()
    codes = torch.from_numpy(np.where(wanted.numpy() == 0, 0, cast.view(np.uint8)))  # one zero
    for of in (x, rounded.numpy()):
        found = minifloat_codes(torch.from_numpy(of.copy()), bits, mantissa_bits, smallest_exponent, largest)
        assert torch.equal(found, codes)
    of_torch = OF_TORCH.get(dtype)
    if of_torch is not None:
        found = float8_codes(torch.from_numpy(x.copy()), of_torch)
        assert torch.equal(found.view(torch.uint8), codes)


@pytest.mark.parametrize("found", FORMATS[:3], ids=lambda f: f[0].__name__)
def test_values_of_codes(found):
    dtype, bits, mantissa_bits, smallest_exponent, _ = found
    codes = np.arange(1 << bits, dtype=np.uint8)
    values = minifloat_values(torch.from_numpy(codes), bits, mantissa_bits, smallest_exponent)
    wanted = torch.from_numpy(codes.view(dtype).astype(np.float32))
    assert torch.equal(values, wanted)
    assert torch.equal(values.signbit(), wanted.signbit())


@pytest.mark.parametrize("dtype", OF_TORCH, ids=lambda d: d.__name__)
def test_numbers_of_eight_bits(dtype):
    codes = np.arange(256, dtype=np.uint8)
    everything = codes.view(dtype).astype(np.float32)
    for chosen in (codes, codes[np.isfinite(everything)], codes[:0]):
        check_values(chosen, dtype)


def check_values(codes, dtype):
    values = float8_values(torch.from_numpy(codes).view(OF_TORCH[dtype]))
    wanted = torch.from_numpy(codes.view(dtype).astype(np.float32))
    assert torch.equal(values.isnan(), wanted.isnan())
    assert torch.equal(values.nan_to_num(0.0), wanted.nan_to_num(0.0))
    assert torch.equal(values.signbit()[~wanted.isnan()], wanted.signbit()[~wanted.isnan()])


@pytest.mark.parametrize("dtype", OF_TORCH, ids=lambda d: d.__name__)
def test_what_is_no_number_stays_none_as_a_code(dtype):
    codes = float8_codes(torch.tensor([torch.nan, 1.0]), OF_TORCH[dtype])
    assert float8_values(codes).isnan().tolist() == [True, False]


@pytest.mark.parametrize("found", FORMATS[:3], ids=lambda f: f[0].__name__)
def test_what_is_no_number_gets_a_code_of_the_format(found):
    _, bits, *format_ = found
    codes = minifloat_codes(torch.tensor([torch.nan, 1.0, -torch.nan]), bits, *format_)
    assert int(codes.max()) < 1 << bits


@BY_NAME
def test_what_is_no_number_stays_none(found):
    _, _, mantissa_bits, smallest_exponent, largest = found
    rounded = round_to_minifloat_(torch.tensor([torch.nan, 1.0]), mantissa_bits, smallest_exponent, largest)
    assert rounded.isnan().tolist() == [True, False]


def test_up_to_ten_bits_of_mantissa():
    """Those of float16, within its normal numbers."""
    drawn = torch.Generator().manual_seed(0)
    x = torch.exp2(torch.rand(1_000_000, generator=drawn) * 29 - 14) * torch.randn(1_000_000, generator=drawn).sign()
    ties = (torch.arange(2048) + 0.5) / 1024
    x = torch.cat([x, ties, torch.nextafter(ties, torch.zeros(1)), torch.nextafter(ties, torch.full((1,), 9.0))])
    assert torch.equal(round_to_minifloat_(x.clone(), 10, -14, 65504.0), x.half().float())


def test_memory_that_is_given_is_used():
    x, scratch = torch.tensor([1.3, -0.2]), torch.empty(2)
    assert round_to_minifloat_(x, 1, 0, 6.0, scratch) is x
    assert x.tolist() == [1.5, 0.0]
    codes = torch.empty(2, dtype=torch.uint8)
    assert minifloat_codes(torch.tensor([1.3, -0.7]), 4, 1, 0, 6.0, out=codes, room=Room()) is codes
    assert codes.tolist() == [3, 9]
    wide = torch.empty(2, dtype=torch.float8_e4m3fn)
    assert float8_codes(torch.tensor([1.3, -0.7]), wide.dtype, out=wide) is wide
    assert wide.float().tolist() == [1.25, -0.6875]
