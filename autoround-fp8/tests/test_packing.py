# SPDX-License-Identifier: Apache-2.0
"""The packed layouts: bytes worked out by hand, exact round trips, and compressed-tensors' own decoding of them."""

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme as CompressedScheme

from auto_round import Codes, QuantizationScheme
from auto_round.errors import ContractError
from auto_round_fp8 import float8, schemes
from auto_round_fp8.hybrid import FP8_TO_INT_SYM
from auto_round_fp8.packing_auto_round import Hybrid, Plain, Static
from auto_round_fp8.packing_compressed import FloatQuantized

SHAPE = (48, 256)


def weight_of(dtype=torch.bfloat16, shape=SHAPE):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 0.05).to(dtype)


def encoded(packing, scheme, dtype=torch.bfloat16):
    scheme = scheme.resolved()
    data_type = float8.FP8
    if scheme.bits == 4:
        data_type = FP8_TO_INT_SYM
    elif isinstance(scheme.group_size, tuple):
        data_type = float8.BLOCK_FP8
    weight = weight_of(dtype)
    offers = {"scale_dtype": packing.scale_dtype(dtype)} if "scale_dtype" in data_type.offers else {}
    codes = data_type.encode(weight, scheme, **offers)
    if scheme.act_dynamic is False:
        frozen = data_type.freeze(torch.tensor(-3.0), torch.tensor(2.0), scheme) if scheme.bits == 8 else None
        frozen = frozen or float8.FP8.freeze(torch.tensor(-3.0), torch.tensor(2.0), scheme)
        tensors = {**codes.tensors, **{f"input_{n}": t for n, t in frozen.items()}}
        codes = Codes(codes.data_type, scheme, codes.shape, codes.dtype, tensors)
    return data_type, codes


ALL = schemes()
HYBRID_STATIC = ALL["W4AFP8"].replace(act_group_size=0, act_dynamic=False)
BLOCK = ALL["FP8_BLOCK"]
GROUPS = ALL["FP8_DYNAMIC"].replace(group_size=64)
PAIRS = [
    (Static(), ALL["FP8_STATIC"]),
    *((Plain(), scheme) for name, scheme in ALL.items() if name != "W4AFP8"),
    (Plain(), GROUPS),
    (Plain(), BLOCK.replace(group_size=(32, 100))),
    *((Hybrid(), scheme) for scheme in (ALL["W4AFP8"], HYBRID_STATIC, ALL["W4AFP8"].replace(group_size=-1))),
    *((FloatQuantized(), scheme) for name, scheme in ALL.items() if name != "W4AFP8"),
    (FloatQuantized(), GROUPS),
]


@pytest.mark.parametrize(("packing", "scheme"), PAIRS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_packing_is_undone_exactly(packing, scheme, dtype):
    data_type, codes = encoded(packing, scheme, dtype)
    assert packing.refuses(codes.data_type, codes.scheme, codes.shape) is None
    packed = packing.pack(codes)
    layout = packing.layout(codes.scheme, codes.shape)
    assert {name: tuple(t.shape) for name, t in packed.items()} == {name: shape for name, (shape, _) in layout.items()}
    for name, tensor in packed.items():
        assert tensor.dtype in (layout[name][1], dtype), name
    loaded = {name: tensor.to(layout[name][1]) for name, tensor in packed.items()}
    back = packing.unpack(loaded, codes.data_type, codes.scheme, codes.shape, dtype)
    assert torch.equal(data_type.decode(back), data_type.decode(codes))
    assert back.tensors.keys() == codes.tensors.keys()
    for name, tensor in codes.tensors.items():
        assert torch.equal(back.tensors[name].float(), tensor.float()), name


def test_eight_bits_by_hand():
    weight = torch.tensor([[448.0, -224.0, 1.0, 0.0], [2**-9, 240.0, -448.0, 1.0625]])
    scheme = ALL["FPW8A16"].resolved()
    codes = float8.FP8.encode(weight, scheme)
    packed = Plain().pack(codes)
    assert packed["weight"].view(torch.uint8).tolist() == [[0x7E, 0xF6, 0x38, 0x00], [0x01, 0x77, 0xFE, 0x38]]
    assert packed["weight_scale"].tolist() == [1.0]


def test_four_bits_by_hand():
    scheme = ALL["W4AFP8"].replace(group_size=-1).resolved()
    stored = torch.tensor([[0, 1, -1, 7, -8, 2]], dtype=torch.int8)
    codes = Codes("fp8_to_int_sym", scheme, (1, 6), torch.float32, {
        "codes": stored, "scale": torch.tensor([[-2.0]]).bfloat16(), "fp8_scale": torch.tensor([0.5]),
    })  # fmt: skip
    packed = Hybrid().pack(codes)
    assert packed["weight_packed"].tolist() == [[0x10, 0x7F, 0x28]]  # the first of two in the low half
    assert FP8_TO_INT_SYM.decode(codes).tolist() == [[0.0, -1.0, 1.0, -7.0, 8.0, -2.0]]


@pytest.mark.parametrize("name", ["FP8_STATIC", "FP8_DYNAMIC", "FP8_BLOCK", "FPW8A16", "groups"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_compressed_tensors_reads_the_same_weight(name, dtype):
    packing = FloatQuantized()
    data_type, codes = encoded(packing, GROUPS if name == "groups" else ALL[name], dtype)
    told = dict(packing.describe(codes.data_type, codes.scheme))
    compressor = BaseCompressor.get_value_from_registry(told["format"])
    theirs = CompressedScheme(targets=["Linear"], **told)
    assert compressor.can_compress(torch.nn.Linear, theirs)
    packed = packing.pack(codes)
    assert packed["weight_scale"].dtype == dtype
    # Its product is computed in the dtype of the scales: numbers of 4 and of 8 or 11 bits, rounded once, as ours.
    found = compressor.decompress(dict(packed), theirs)["weight"]
    assert found.dtype == dtype
    assert torch.equal(found, data_type.decode(codes))


def test_the_words_are_those_of_the_presets():
    """compressed-tensors names two of these schemes itself."""
    from compressed_tensors.quantization import preset_name_to_scheme

    for name in ("FP8_DYNAMIC", "FP8_BLOCK"):
        theirs = preset_name_to_scheme(name, ["Linear"])
        ours = CompressedScheme(targets=["Linear"], **FloatQuantized().describe("fp8", ALL[name].resolved()))
        for part in ("weights", "input_activations"):
            # How they calibrate is over.
            a, b = ({**getattr(one, part).model_dump(), "observer": None} for one in (theirs, ours))
            assert a == b, (name, part)


def test_refusals():
    shape, plain, static, hybrid, compressed = (256, 256), Plain(), Static(), Hybrid(), FloatQuantized()
    schemes = {name: scheme.resolved() for name, scheme in ALL.items()}
    assert "not fp8_e5m2" in plain.refuses("fp8_e5m2", schemes["FPW8A16"], shape)
    assert "activations" in plain.refuses("fp8", schemes["FP8_DYNAMIC"].replace(act_bits=4), shape)
    for packing, name in ((plain, "FP8_DYNAMIC"), (static, "FP8_STATIC"), (compressed, "FP8_STATIC")):
        # No reader of these files computes with other activations than e4m3.
        for other in ("int_sym", "fp8_e5m2", "fp8_e4m3fnuz", "fp8_unit_scale"):
            assert "of e4m3" in packing.refuses("fp8", schemes[name].replace(act_data_type=other), shape)
        for same in ("fp8", "fp8_sym", "autoround-fp8:FP8"):
            assert packing.refuses("fp8", schemes[name].replace(act_data_type=same), shape) is None
    assert "static activations" in static.refuses("fp8", schemes["FP8_DYNAMIC"], shape)
    assert "4 bits" in hybrid.refuses("fp8_to_int_sym", schemes["W4AFP8"].replace(bits=3), shape)
    assert "multiple" in compressed.refuses("fp8", schemes["FP8_BLOCK"], (256, 200))
    assert "divide" in compressed.refuses("fp8", schemes["FP8_DYNAMIC"].replace(act_group_size=100), shape)
    assert "one scale" in compressed.refuses("fp8", schemes["FP8_STATIC"].replace(act_group_size=-1), shape)


def test_static_activations_without_a_scale_are_an_error():
    _, codes = encoded(Static(), ALL["FP8_STATIC"])
    bare = Codes(codes.data_type, codes.scheme, codes.shape, codes.dtype, dict(list(codes.tensors.items())[:2]))
    for packing in (Static(), Plain(), FloatQuantized()):
        with pytest.raises(ContractError, match="not observed"):
            packing.pack(bare)


def test_scales_are_never_rounded_while_packing():
    scheme = ALL["FP8_DYNAMIC"].resolved()
    codes = float8.FP8.encode(weight_of(), scheme, scale_dtype=torch.float32)
    with pytest.raises(ContractError, match="would have to round"):
        FloatQuantized().pack(codes)
    assert isinstance(scheme, QuantizationScheme)
