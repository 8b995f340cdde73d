# SPDX-License-Identifier: Apache-2.0
"""Every value of small floats, every tie between two, and what lies next to them, against `ml_dtypes`.

Both ways are looked at: as it stands, and the one that compiled code goes, here not compiled.
"""

import ml_dtypes
import numpy as np
import pytest
import torch

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
    rounded = round_to_minifloat_(torch.from_numpy(x), mantissa_bits, smallest_exponent, largest)
    wanted = torch.from_numpy(cast.astype(np.float32))
    assert torch.equal(rounded, wanted)
    assert not rounded[rounded == 0].signbit().any()
    codes = torch.from_numpy(np.where(wanted.numpy() == 0, 0, cast.view(np.uint8)))  # one zero
    assert torch.equal(minifloat_codes(rounded, bits, mantissa_bits, smallest_exponent), codes)


@pytest.mark.parametrize("found", FORMATS[:3], ids=lambda f: f[0].__name__)
def test_values_of_codes(found):
    dtype, bits, mantissa_bits, smallest_exponent, _ = found
    codes = np.arange(1 << bits, dtype=np.uint8)
    values = minifloat_values(torch.from_numpy(codes), bits, mantissa_bits, smallest_exponent)
    wanted = torch.from_numpy(codes.view(dtype).astype(np.float32))
    assert torch.equal(values, wanted)
    assert torch.equal(values.signbit(), wanted.signbit())


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
