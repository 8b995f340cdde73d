# SPDX-License-Identifier: Apache-2.0
"""Fine-grained FP8 checkpoints as input: decoded as transformers decodes them, a row of blocks at a time."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from auto_round import QuantizationScheme
from auto_round.errors import ModelError
from auto_round_fp8.fine_grained_input import FineGrainedInput
from auto_round_fp8.float8 import BLOCK_FP8

BLOCKS = FineGrainedInput((32, 64))


class Counted:
    """A tensor in a file that remembers how much of it was read at a time."""

    def __init__(self, tensor):
        self.tensor, self.largest = tensor, 0

    def get_shape(self):
        return list(self.tensor.shape)

    def __getitem__(self, rows):
        part = self.tensor[rows]
        self.largest = max(self.largest, len(part))
        return part


def encoded(rows, cols, block=(32, 64), dtype=torch.bfloat16):
    weight = (torch.randn(rows, cols, generator=torch.Generator().manual_seed(0)) * 0.05).to(dtype)
    codes = BLOCK_FP8.encode(weight, QuantizationScheme(bits=8, group_size=block, data_type="fp"))
    return codes, codes.tensors["codes"], codes.tensors["scale"]


@pytest.mark.parametrize("shape", [(96, 128), (100, 130), (7, 64), (32, 1), (1, 65)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_it_gives_back_what_was_encoded(shape, dtype):
    codes, stored, scales = encoded(*shape, dtype=dtype)
    found = BLOCKS.decoded("layer.weight", Counted(stored), lambda: scales, dtype)
    assert torch.equal(found, BLOCK_FP8.decode(codes))


def test_transformers_decodes_the_same():
    _, stored, scales = encoded(96, 128)
    for dtype in (torch.bfloat16, torch.float32):
        theirs = Fp8Dequantize(None)._dequantize_one(stored, scales, dtype)
        assert torch.equal(BLOCKS.decoded("w.weight", Counted(stored), lambda: scales, dtype), theirs)


def test_no_more_than_one_row_of_blocks_is_held():
    _, stored, scales = encoded(200, 64)
    for reader, value, most in ((BLOCKS, scales, 32), (FineGrainedInput(None), torch.tensor(0.5), 128)):
        counted = Counted(stored)
        reader.decoded("w.weight", counted, lambda value=value: value, torch.bfloat16)
        assert counted.largest == most


def test_one_scale_for_the_whole_weight():
    _, stored, _ = encoded(40, 24)
    found = FineGrainedInput(None).decoded("w.weight", Counted(stored), lambda: torch.tensor(0.125), torch.float32)
    assert torch.equal(found, stored.float() * 0.125)


def test_out_of_a_file(tmp_path):
    codes, stored, scales = encoded(100, 130)
    names = {"a.weight": stored, "a.weight_scale_inv": scales, "a.bias": torch.ones(100), "norm.weight": torch.ones(8)}
    save_file(names, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        keys = dict.fromkeys(file.keys())
        assert [n for n in sorted(keys) if BLOCKS.belongs_to_weight(n)] == ["a.weight_scale_inv"]
        assert BLOCKS.scale_name("a.weight", keys) == "a.weight_scale_inv"
        assert BLOCKS.scale_name("a.bias", keys) is BLOCKS.scale_name("norm.weight", keys) is None
        found = BLOCKS.decoded(
            "a.weight", file.get_slice("a.weight"), lambda: file.get_tensor("a.weight_scale_inv"), torch.bfloat16
        )
    assert torch.equal(found, BLOCK_FP8.decode(codes))


def test_which_checkpoints_it_reads():
    config = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    assert FineGrainedInput.of(config) == FineGrainedInput((128, 128))
    assert FineGrainedInput.of({"quant_method": "fp8"}) == FineGrainedInput(None)
    assert FineGrainedInput.of({"quant_method": "gptq"}) is None
    with pytest.raises(ModelError, match="two positive numbers"):
        FineGrainedInput.of({**config, "weight_block_size": [128]})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"scales": torch.ones(2, 2)}, "4 by 3 scales, but 2 by 2 are stored"),
        ({"scales": torch.full((4, 3), torch.inf)}, "NaN or infinite"),
        ({"scales": torch.ones(4, 3, dtype=torch.int32)}, "no fine-grained FP8"),
        ({"codes": torch.ones(100, 130)}, "not as an 8-bit float"),
        ({"codes": torch.full((100, 130), 0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn)}, "in rows 0 to 31"),
        ({"codes": torch.full((100, 130), 0x7C, dtype=torch.uint8).view(torch.float8_e5m2)}, "in rows 0 to 31"),
        ({"reader": FineGrainedInput(None)}, "says nothing of blocks"),
    ],
)
def test_what_makes_no_sense_is_said_with_the_name(change, reason):
    _, stored, scales = encoded(100, 130)
    given = {"reader": BLOCKS, "codes": stored, "scales": scales, **change}
    with pytest.raises(ModelError, match=reason) as told:
        given["reader"].decoded("deep.layer.weight", Counted(given["codes"]), lambda: given["scales"], torch.float32)
    assert "deep.layer.weight" in str(told.value)
