# SPDX-License-Identifier: Apache-2.0
"""The learnt form against vectors of the known implementation, and its gradients against autograd.

Recorded were super-scales in float32, which no file can store, made of scales rounded to float16, which files do not
store. So the definition is written out here once with a switch: as recorded it gives the recorded vectors bit for bit,
as stored (super-scales in float16, nothing else rounded) it gives ours.
"""

from functools import partial

import pytest
import torch

from auto_round.data_type.rounding import round_ste
from auto_round_gguf import block
from auto_round_gguf.types import BLOCK_TYPES

THRESHOLD = 1e-5
NAMES = {"int_asym_dq": block.INT_ASYM_DQ, "int_sym_dq": block.INT_SYM_DQ}


def half(x):
    return x + (x.half().float() - x).detach()


def reciprocal(x):
    return torch.where(x == 0, torch.zeros_like(x), 1 / torch.where(x == 0, torch.ones_like(x), x))


def written_out(weight, case, v=0.0, min_scale=1.0, max_scale=1.0, *, as_recorded):
    """The definition, an operation at a time, differentiated by autograd."""
    groups = weight.reshape(-1, case["group_size"])
    groups = groups if as_recorded else groups.float()
    low, high = groups.amin(-1).clamp(max=0) * min_scale, groups.amax(-1).clamp(min=0) * max_scale
    symmetric = "int_sym_dq" in case
    steps, size = 2 ** (case["bits"] - 1), case["super_group_size"]
    if symmetric:
        scale = torch.where(-low > high, -low, -high) / steps
        if as_recorded:
            scale = scale.half()
            scale = torch.where(scale < 0, scale.clamp(max=-THRESHOLD), scale.clamp(min=THRESHOLD))
        scales, most = scale.float().reshape(-1, size), 2 ** (case["super_bits"] - 1)
        unit = scales.gather(1, scales.abs().argmax(1, keepdim=True)) / -most
        unit = unit if as_recorded else half(unit)
        stored = (round_ste(scales * reciprocal(unit)).clamp(-most, most - 1) * unit).reshape(-1, 1)
        codes = round_ste(groups.float() * reciprocal(stored) + v).clamp(-steps, steps - 1)
        return (codes * stored).reshape(weight.shape).to(weight.dtype)
    scale = (high - low) / (2 * steps - 1)
    scale = scale.half().clamp(min=THRESHOLD) if as_recorded else scale
    stored = []
    for values in (scale.float(), -low.float()):
        scales, most = values.reshape(-1, size), 2 ** case["super_bits"] - 1
        unit = scales.clamp(min=0).max(1, keepdim=True).values / most
        unit = unit.clamp(min=THRESHOLD) if as_recorded else half(unit)
        stored.append((round_ste(scales * reciprocal(unit)).clamp(max=most) * unit).reshape(-1, 1))
    step, depth = stored
    codes = round_ste((groups.float() + depth) * reciprocal(step) + v).clamp(0, 2 * steps - 1)
    return (codes * step - depth).reshape(weight.shape).to(weight.dtype)


def arguments(tensors):
    return {k: tensors[k] for k in ("v", "min_scale", "max_scale") if k in tensors}


@pytest.mark.parametrize("name", NAMES)
def test_values_are_the_recorded_ones(recorded, name):
    compared = 0
    for case, tensors in recorded(name):
        weight = tensors["weight"]
        described = {**case, name: True}
        plain = written_out(weight, described, **arguments(tensors), as_recorded=True)
        # Scales were also kept above 1e-5 once they were quantized, which shows where a row or half of it is next to
        # nothing; files have no such floor, and the definition here leaves it out.
        rows = (weight.float().reshape(len(weight), -1, 128).abs().amax(-1) > 1e-2).all(-1)
        if case["kind"] != "degenerate":
            scale = tensors["scale.scale"].abs().reshape(len(weight), -1)
            rows &= (scale > 1.5 * THRESHOLD).all(-1)
        assert rows.sum() >= 4
        assert torch.equal(plain[rows], tensors["qdq"][rows]), case
        ours, _, _ = NAMES[name].quant_tensor(weight, bits=case["bits"], **arguments(tensors))
        assert torch.equal(ours, written_out(weight, described, **arguments(tensors), as_recorded=False)), case
        # And both err alike: the two changes move a code here and there, never the whole.
        wide = weight.double()
        if case["kind"] != "degenerate":
            error, before = (ours.double() - wide).square().sum(), (tensors["qdq"].double() - wide).square().sum()
            assert error <= 1.05 * before, case
        compared += 1
    assert compared >= 16


def differentiate(function, tensors):
    parameters = {k: t.clone().requires_grad_() for k, t in arguments(tensors).items()}
    (function(**parameters).float() * tensors["probe"]).sum().backward()
    return {k: p.grad for k, p in parameters.items()}


def sizes(tensors, case):
    """For each group, the size of the terms that make the gradient of its factors, super-block neighbours included."""
    probe = tensors["probe"].abs().reshape(-1, case["group_size"]).sum(-1)
    groups = tensors["weight"].float().reshape(-1, case["group_size"])
    own = probe * (groups.amax(-1).clamp(min=0) - groups.amin(-1).clamp(max=0))
    return own.reshape(-1, case["super_group_size"]).sum(-1).repeat_interleave(case["super_group_size"])


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_the_definition(recorded, name):
    for case, tensors in recorded(name):
        if not case["tuned"]:
            continue
        weight, described = tensors["weight"], {**case, name: True}
        tuned = partial(NAMES[name].quant_tensor, weight, bits=case["bits"])
        ours = differentiate(lambda t=tuned, **p: t(**p)[0], tensors)
        wanted = differentiate(lambda w=weight, c=described, **p: written_out(w, c, **p, as_recorded=False), tensors)
        assert torch.equal(ours["v"], wanted["v"]), case
        for factor in ("min_scale", "max_scale"):
            # Float32 sums in another order differ by a few units of 2^-23 of the size of their terms.
            assert ((ours[factor] - wanted[factor]).abs() <= 16 * 2**-23 * sizes(tensors, case)).all(), case


@pytest.mark.parametrize("name", NAMES)
def test_the_definition_has_the_recorded_gradients(recorded, name):
    for case, tensors in recorded(name):
        if not case["tuned"] or case["kind"] == "degenerate":  # where the floor of scales has gradients of its own
            continue
        weight, described = tensors["weight"], {**case, name: True}
        found = differentiate(lambda w=weight, c=described, **p: written_out(w, c, **p, as_recorded=True), tensors)
        floor = (tensors["scale.scale"].abs().reshape(-1, case["super_group_size"]) <= 1.5 * THRESHOLD).any(-1)
        clear = ~floor.repeat_interleave(case["super_group_size"])
        for factor in ("v", "min_scale", "max_scale"):
            got, kept = found[factor].reshape(len(clear), -1), tensors[f"grad.{factor}"].reshape(len(clear), -1)
            size = sizes(tensors, case)[:, None]
            assert ((got - kept).abs() <= 4 * 2**-23 * size)[clear].all(), (case, factor)


@pytest.mark.parametrize("kind", [k for k in BLOCK_TYPES.values() if k.super_bits is None], ids=lambda k: k.name)
def test_gradients_of_types_without_super_blocks(kind):
    """Against autograd on the definition; that of ggml has no gradients."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(8, 256, generator=generator)
    groups = weight.reshape(-1, kind.group)
    tensors = {
        "v": torch.rand(groups.shape, generator=generator) - 0.5,
        "min_scale": 0.7 + 0.3 * torch.rand(len(groups), generator=generator),
        "max_scale": 0.7 + 0.3 * torch.rand(len(groups), generator=generator),
        "probe": torch.randn(8, 256, generator=generator),
    }

    def definition(v, min_scale, max_scale):
        low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
        low, high = low * min_scale[:, None], high * max_scale[:, None]
        if not kind.signed:
            exact = (high - low) / kind.high
            codes = round_ste((groups - low) / exact + v).clamp(0, kind.high)
            return (codes * half(exact) + half(low)).reshape(8, 256)
        extreme = torch.where(-low > high, low, high) / kind.low
        exact = torch.maximum(-low, high) / 127 if kind.bits == 8 else extreme
        return (round_ste(groups / exact + v).clamp(kind.low, kind.high) * half(exact)).reshape(8, 256)

    ours = differentiate(lambda **p: getattr(block, kind.name.upper()).quant_tensor(weight, **p)[0], tensors)
    wanted = differentiate(definition, tensors)
    for name, got in ours.items():
        # Codes are made with the scale before it is rounded to float16, their gradient with the one after: 2^-11, of
        # terms up to the largest code of a group of 32.
        size = 32 * groups.abs().amax(-1) * tensors["probe"].abs().max()
        difference = (got - wanted[name]).abs().reshape(len(groups), -1)
        assert (difference <= 2**-11 * size[:, None]).all(), name


def test_the_recorded_float_zero_point_cannot_be_stored(recorded):
    """Recorded under `int_asym_float_zp`: whole multiples of the scale, cut off at both ends, wherever those lie.

    q4_1 and q5_1 store a minimum and whole steps from there, so the recorded values are not in any file. Ours are, and
    err as little.
    """
    for case, tensors in recorded("int_asym_float_zp"):
        if case["kind"] in ("degenerate", "ragged"):
            continue
        weight = tensors["weight"]
        groups, step = weight.float().reshape(-1, case["group_size"]), tensors["scale"].float()
        if case["kind"] != "bf16":
            kept = tensors["qdq"].float().reshape(groups.shape)
            ends = step * tensors["zp"], step * (2 ** case["bits"] - 1 - tensors["zp"])
            v = tensors.get("v", torch.zeros(()))
            wanted = (step * torch.round(groups / step + v)).clamp(-ends[0], ends[1])
            torch.testing.assert_close(kept, wanted, rtol=1e-5, atol=1e-6)
            offsets = (kept - kept.amin(-1, keepdim=True)) / step
            assert ((offsets - offsets.round()).abs() > 0.01).any()  # no whole steps from the least value
        if case["kind"] == "outlier":
            continue  # most weights are next to zero there, which a grid from the minimum on does not hold
        ours, _, _ = block.INT_ASYM_FLOAT_ZP.quant_tensor(weight, bits=case["bits"], **arguments(tensors))
        wide = weight.double()
        error, before = (ours.double() - wide).square().sum(), (tensors["qdq"].double() - wide).square().sum()
        # With random learnt factors neither is meant to be better; ends that are on the grid decide by a few percent.
        assert error <= 1.06 * before, case
