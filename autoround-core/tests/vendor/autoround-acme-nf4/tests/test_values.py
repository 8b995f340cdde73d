"""The levels and the codes, against the paper's definition and against bitsandbytes, whose authors wrote the paper."""

from statistics import NormalDist

import pytest
import torch
from auto_round import QuantizationScheme
from auto_round.plugins import default_registry

from autoround_acme_nf4.acme_nf4 import LEVELS, SCALE_BLOCK, decoded_scales, encoded_scales

SCHEME = QuantizationScheme(4, 64, True, "acme_nf4")


@pytest.fixture
def data_type():
    return default_registry().data_type("acme_nf4")


def weights(rows=64, columns=512):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * 0.05


def test_levels_are_quantiles_of_the_normal_distribution():
    # Equal shares of probability on each side, the outermost quantile halfway between 1 - 1/30 and 1 - 1/32.
    outermost = (1 - 1 / 30 + 1 - 1 / 32) / 2
    side = [[NormalDist().inv_cdf(outermost + (0.5 - outermost) * i / n) for i in range(n)] for n in (8, 7)]
    expected = sorted([*side[0], 0.0, *(-q for q in side[1])])
    # The published values were computed in float32.
    assert [q / expected[-1] for q in expected] == pytest.approx(LEVELS.tolist(), abs=2e-7)


def test_levels_and_codes_are_those_of_bitsandbytes(data_type):
    functional = pytest.importorskip("bitsandbytes.functional")
    assert functional.get_4bit_type("nf4", "cpu").tolist() == LEVELS.tolist()
    weight = weights()
    weight.view(-1, 64)[:, 7] = -0.25  # one scale everywhere, which 8 bits hold exactly
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=False)
    codes = data_type.encode(weight, SCHEME).tensors["codes"]
    theirs = torch.stack([packed >> 4, packed & 15], -1).reshape(weight.shape)
    middle = (LEVELS[1:] + LEVELS[:-1]) / 2
    from_middle = ((weight / 0.25).unsqueeze(-1) - middle).abs().amin(-1)
    clear = from_middle > 1e-6  # of a tie, which floats may see on either side
    assert clear.float().mean() > 0.999
    assert torch.equal(codes[clear], theirs[clear])
    same = data_type.quant_tensor(weight, group_size=64)[0] == functional.dequantize_4bit(packed, state)
    assert same[clear].all()


def test_double_quantization_is_as_good_as_that_of_bitsandbytes(data_type):
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = weights()
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=True)
    theirs = (functional.dequantize_4bit(packed, state) - weight).square().mean()
    ours = (data_type.quant_tensor(weight, group_size=64)[0] - weight).square().mean()
    assert ours < 1.005 * theirs


def test_scales_are_within_half_a_step():
    groups = weights(300, 64)
    scale, (codes, steps, mean) = groups.abs().amax(-1), encoded_scales(groups, 1.0)
    assert (len(steps), codes.abs().max().item()) == (2, 127)
    assert mean.item() == pytest.approx(scale.mean().item())
    off = (decoded_scales(codes, steps, mean)[:, 0] - scale).abs()
    # Half a step, and what float32 loses in adding the mean.
    assert (off <= 0.5 * steps.repeat_interleave(SCALE_BLOCK)[: len(scale)] + 1e-7).all()


def test_a_weight_costs_4_127_bits(data_type):
    assert data_type.bits_per_weight(SCHEME, (4096, 4096)) == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-5)
