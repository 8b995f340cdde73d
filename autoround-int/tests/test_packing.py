# SPDX-License-Identifier: Apache-2.0
"""The packed layouts: bytes worked out by hand from the definitions, and exact round trips."""

import itertools

import pytest
import torch

from auto_round import Codes, QuantizationScheme
from auto_round.errors import ContractError
from auto_round_int.asymmetric import IntAsym
from auto_round_int.bits import pack_rows, unpack_rows
from auto_round_int.packing_awq import AutoAwq
from auto_round_int.packing_gptq import AutoGptq, Dense, ZeroPointsAsTheyAre
from auto_round_int.symmetric import IntSym

PACKINGS = [AutoGptq(), AutoAwq(), ZeroPointsAsTheyAre(), Dense()]


def signed(word):
    return word - (1 << 32) if word >= 1 << 31 else word


def codes_of(values, bits, zero_point=None):
    """Codes [32, 32] of one group per row: the given ones in row 0, zeros elsewhere."""
    sym = zero_point is None
    codes = torch.zeros(32, 32, dtype=torch.int8 if sym else torch.uint8)
    codes[0] = torch.tensor(values)
    tensors = {"codes": codes, "scale": torch.arange(32).half().view(32, 1) - 16}
    if not sym:
        tensors["zero_point"] = torch.tensor(zero_point, dtype=torch.uint8).view(32, 1)
    scheme = QuantizationScheme(bits=bits, group_size=-1, sym=sym, data_type="int")
    return Codes("int_sym" if sym else "int_asym", scheme, (32, 32), torch.float32, tensors)


def test_four_bits_by_hand():
    # 0..7, then -8..-1, and so on; stored plus 8: 8 9 a b c d e f, 0 1 2 3 4 5 6 7; the first in the lowest four bits.
    packed = AutoGptq().pack(codes_of([*range(8), *range(-8, 0)] * 2, 4))
    assert packed["qweight"].shape == (4, 32)
    assert packed["qweight"][:, 0].tolist() == [signed(0xFEDCBA98), 0x76543210] * 2
    assert packed["qweight"][:, 1].tolist() == [signed(0x88888888)] * 4  # zeros are stored as 8
    assert packed["qzeros"].tolist() == [[0x77777777] * 4]  # the zero point 8, minus one
    assert packed["scales"].tolist() == [[float(i - 16) for i in range(32)]]  # negative ones as they are


def test_two_and_eight_bits_by_hand():
    packed = AutoGptq().pack(codes_of([-2, -1, 0, 1] * 8, 2))
    assert packed["qweight"][:, 0].tolist() == [signed(0xE4E4E4E4)] * 2  # 0 1 2 3 is 11 10 01 00
    assert packed["qzeros"].tolist() == [[0x55555555] * 2]  # 2 - 1 = 01
    packed = AutoGptq().pack(codes_of([-128, -127, 0, 127] * 8, 8))
    assert packed["qweight"][:, 0].tolist() == [signed(0xFF800100)] * 8
    assert packed["qzeros"].tolist() == [[0x7F7F7F7F] * 8]


def test_three_bits_by_hand():
    # 32 codes over three words: ten, two bits of the eleventh | its last bit, ten, one bit of the 22nd | its last two
    # bits, ten. Stored values 0..7 in turn.
    stored = [i % 8 for i in range(32)]
    words = [0, 0, 0]
    for i in range(10):
        words[0] |= stored[i] << (3 * i)
        words[1] |= stored[11 + i] << (3 * i + 1)
        words[2] |= stored[22 + i] << (3 * i + 2)
    words[0] |= (stored[10] & 0b11) << 30
    words[1] |= (stored[10] >> 2) | (stored[21] & 0b1) << 31
    words[2] |= stored[21] >> 1
    assert words == [0x88FAC688, 0xC688FAC6, 0xFAC688FA]
    packed = AutoGptq().pack(codes_of([value - 4 for value in stored], 3))
    assert packed["qweight"][:, 0].tolist() == [signed(word) for word in words]
    assert packed["qzeros"].shape == (1, 3)
    assert unpack_rows(packed["qzeros"], 3, 32).tolist() == [[3] * 32]  # 4 - 1


def test_awq_order_by_hand():
    # Input 0 has the codes 0..7 in its first eight output channels; a word holds 0 2 4 6 1 3 5 7 from below.
    codes = codes_of([0] * 32, 4, zero_point=[*range(16), *range(16)])
    codes.tensors["codes"][:, 0] = torch.arange(32) % 16
    packed = AutoAwq().pack(codes)
    assert packed["qweight"].shape == (32, 4)
    assert packed["qweight"][0].tolist() == [0x75316420, signed(0xFDB9ECA8)] * 2
    assert packed["qweight"][1].tolist() == [0] * 4
    assert packed["qzeros"].tolist() == [[0x75316420, signed(0xFDB9ECA8)] * 2]  # as they are, in the same order


def test_asymmetric_zero_points_are_stored_as_they_are():
    packed = ZeroPointsAsTheyAre().pack(codes_of([0] * 32, 8, zero_point=[0, 1, 2, 255] * 8))
    assert packed["qzeros"].tolist() == [[signed(0xFF020100)] * 8]


@pytest.mark.parametrize("bits", range(1, 9))
def test_a_row_is_one_stream_of_bits(bits, monkeypatch):
    codes = torch.randint(0, 2**bits, (3, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(bits))
    stream = sum(code << (bits * i) for i, code in enumerate(codes[1].tolist()))
    packed = pack_rows(codes, bits)
    assert packed[1].tolist() == [signed(stream >> (32 * i) & 0xFFFFFFFF) for i in range(2 * bits)]
    assert torch.equal(unpack_rows(packed, bits, 64), codes)
    monkeypatch.setattr("auto_round_int.bits.CHUNK", 40)
    assert torch.equal(pack_rows(codes, bits), packed)
    middle = 1 << (bits - 1)
    assert torch.equal(pack_rows((codes.view(torch.int8) - middle).view(torch.uint8), bits, middle), packed)
    assert torch.equal(unpack_rows(packed, bits, 64), codes)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("data_type", [IntSym(), IntAsym()], ids=lambda d: d.name)
def test_round_trips_are_exact(data_type, bits):
    taken = 0
    draw = torch.Generator().manual_seed(bits)
    for group_size, shape in itertools.product((-1, 32, 48, 128, 1024), ((32, 32), (64, 96), (96, 160))):
        scheme = QuantizationScheme(bits=bits, group_size=group_size, sym=data_type.name == "int_sym", data_type="int")
        weight = torch.randn(shape, generator=draw).bfloat16()
        codes = data_type.encode(weight, scheme)
        for packing in PACKINGS:
            if packing.refuses(data_type.name, scheme, shape):
                continue
            taken += 1
            tensors = packing.pack(codes)
            assert {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()} == packing.layout(scheme, shape)
            assert all(t.is_contiguous() for t in tensors.values())
            back = packing.unpack(tensors, data_type.name, scheme, shape, torch.bfloat16)
            assert back.shape == shape
            assert back.tensors.keys() == codes.tensors.keys()
            for name, tensor in codes.tensors.items():
                assert back.tensors[name].dtype == tensor.dtype
                assert torch.equal(back.tensors[name], tensor)
            assert torch.equal(data_type.decode(back), data_type.decode(codes))
    assert taken >= 15


def test_what_a_layout_cannot_hold_is_said():
    gptq, awq = AutoGptq(), AutoAwq()
    sym, asym = QuantizationScheme(), QuantizationScheme(sym=False)
    assert gptq.refuses("int_sym", sym, (64, 64)) is None
    assert "not int_asym" in gptq.refuses("int_asym", asym, (64, 64))
    assert "2, 3, 4 and 8 bits, not 5" in gptq.refuses("int_sym", sym.replace(bits=5), (64, 64))
    assert "multiples of 32, not (48, 64)" in gptq.refuses("int_sym", sym, (48, 64))
    assert "not 0" in gptq.refuses("int_sym", sym.replace(group_size=0), (64, 64))
    assert gptq.refuses("int_sym", sym.replace(group_size=48), (64, 64)) is None
    assert "whole groups" in awq.refuses("int_asym", asym.replace(group_size=48), (64, 64))
    assert awq.refuses("int_asym", asym.replace(group_size=128), (64, 64)) is None
    assert "4 bits, not 3" in awq.refuses("int_asym", asym.replace(bits=3), (64, 64))
    assert gptq.scale_dtype(torch.bfloat16) == torch.float16


def test_what_would_not_come_back_is_refused():
    scheme = QuantizationScheme(group_size=32)
    weight = torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ContractError, match="would have to round"):
        AutoGptq().pack(IntSym().encode(weight, scheme, scale_dtype=torch.float32))
    packed = dict(AutoGptq().pack(IntSym().encode(weight, scheme)))
    packed["qzeros"] = packed["qzeros"] + 1
    with pytest.raises(ContractError, match="zero points other than 8"):
        AutoGptq().unpack(packed, "int_sym", scheme, (32, 32), torch.float32)
