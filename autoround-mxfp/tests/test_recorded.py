# SPDX-License-Identifier: Apache-2.0
"""The plain and the learnt form against vectors of the known implementation.

Recorded under `mx_fp6e3m2_rceil`, `mx_fp8e5m2_rceil`, `mx_int8_rceil` and `mx_int4_rceil` (and the searches of the same
formats) are those of e2m3, e4m3, e4m3 and e2m1, bit for bit: the known function looks its format up by bits where its
caller does not repeat the name. They say nothing about the formats they are called after and are not used here.
"""

import pytest
import torch

import auto_round_mxfp.microscaling as family
from auto_round.data_type.grouping import reshape_pad_tensor_by_group_size
from auto_round.schemes import QuantizationScheme

RECORDED = [
    "mx_fp4", "mx_fp4_rceil", "mx_fp6e2m3", "mx_fp6e2m3_rceil", "mx_fp6e3m2", "mx_fp8e4m3", "mx_fp8e4m3_rceil",
    "mx_fp8e5m2", "mx_int8", "mx_int4",
]  # fmt: skip


def grouped(tensor):
    return reshape_pad_tensor_by_group_size(tensor, 32)[0]


@pytest.mark.parametrize("name", RECORDED)
def test_values_are_the_recorded_ones(recorded, name):
    data_type, compared = getattr(family, name), 0
    for case, tensors in recorded(name):
        learnt = {k: tensors[k] for k in ("v", "max_scale") if k in tensors}
        rounded, exponents, zero_point = data_type.quant_tensor(tensors["weight"], case["bits"], 32, **learnt)
        zero = (grouped(tensors["weight"]) == 0).all(-1)
        assert torch.equal(exponents[~zero], tensors["scale"].float()[~zero]), case
        # A block of zeros was recorded with the scale of a block whose largest weight is two, so that the learnt offset
        # turned its zeros into weights. Here it has the smallest scale there is and stays what it was.
        assert (exponents[zero] == -127).all()
        assert torch.equal(grouped(rounded)[~zero], grouped(tensors["qdq"])[~zero]), case
        assert (grouped(rounded)[zero].abs() <= data_type.element(case["bits"]).max * 2.0**-127).all()
        assert zero_point is None
        compared += int((~zero).sum())
    assert compared > 800


@pytest.mark.parametrize("name", RECORDED)
def test_gradients_are_the_recorded_ones(recorded, name):
    data_type = getattr(family, name)
    for case, tensors in recorded(name):
        if not case["tuned"]:
            continue
        weight = tensors["weight"]
        v, max_scale = (tensors[k].clone().requires_grad_() for k in ("v", "max_scale"))
        rounded, exponents, _ = data_type.quant_tensor(weight, case["bits"], 32, v=v, max_scale=max_scale)
        (rounded.float() * tensors["probe"].float()).sum().backward()
        zero, scale = (grouped(weight) == 0).all(-1), 2.0**exponents
        probe = grouped(tensors["probe"].float()).abs()
        # One factor of float32 after the other: a few units of its last place.
        difference = (v.grad - tensors["grad.v"]).abs()
        assert (difference <= 8 * 2**-23 * probe * scale)[~zero].all(), case
        # The gradient of a factor is a sum over its block of terms up to |probe| times the values they belong to,
        # in another order and, before the cancelling of y and r W, of that size.
        size = (probe * (grouped(rounded.float()).abs() + grouped(weight.float()).abs())).sum(-1) / tensors["max_scale"]
        difference = (max_scale.grad - tensors["grad.max_scale"]).abs()
        assert (difference <= 8 * 2**-23 * size)[~zero].all(), case
        # Recorded as NaN, for the logarithm of zero.
        assert tensors["grad.max_scale"][zero].isnan().all()
        assert (max_scale.grad[zero] == 0).all()


@pytest.mark.parametrize("name", ["mx_fp4", "mx_fp6e2m3", "mx_fp8e4m3"])
def test_the_search_is_at_least_as_good_as_the_recorded_one(recorded, name):
    data_type = getattr(family, name)
    better = blocks = 0
    for case, tensors in recorded(f"opt_rtn_{name}"):
        weight, imatrix = tensors["weight"], tensors["imatrix"]
        scheme = QuantizationScheme(bits=case["bits"], group_size=32, data_type=name)
        found = data_type.search(weight, scheme, imatrix=imatrix, scale_dtype=torch.float16)

        def error(rounded, weight=weight, imatrix=imatrix):
            return grouped((rounded.double() - weight.double()).square() * imatrix.double()).sum(-1)

        ours = error(data_type.quant_tensor(weight, group_size=32, **found)[0])
        theirs, plain = error(tensors["qdq"]), error(data_type.quant_tensor(weight)[0])
        # Equal choices have equal errors; where the difference is one that summing in float32 can make, either choice.
        assert (ours <= theirs * (1 + 1e-6)).all(), case
        assert (ours <= plain * (1 + 1e-6)).all(), case
        better, blocks = better + int((ours < plain * (1 - 1e-6)).sum()), blocks + len(ours)
    assert better > blocks / 20
