# SPDX-License-Identifier: Apache-2.0
"""Activations as the quantized model sees them: while tuning, in memory, after loading; and what layers share."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from auto_round import AutoRound, Codes, DataType, QuantizationScheme, hookimpl
from auto_round.data_type.rounding import round_ste
from auto_round.errors import CalibrationError
from auto_round.plugins import default_registry
from auto_round.tuning.prepared import _range_of

RUN = {"nsamples": 8, "batch_size": 4, "verbose": False}


class Thirds(DataType):
    """Whole multiples of a scale; the scale of a layer's fellows, or a frozen one, if it is told one."""

    name = "thirds"
    encodes = True
    tuned = {"v": None}  # noqa: RUF012 - a test
    sets = []  # noqa: RUF012 - what `share` was called with

    def quant_tensor(self, tensor, bits=4, v=0.0, global_scale=None, init_scale=None):
        top = 2 ** (bits - 1) - 1
        scale = tensor.float().abs().amax() / top if global_scale is None else global_scale
        scale = scale if init_scale is None else init_scale
        return (round_ste(tensor.float() / scale + v).clamp(-top, top) * scale).to(tensor.dtype), scale, None

    def share(self, weights, scheme):
        self.sets.append([tuple(w.shape) for w in weights])
        return {
            "global_scale": torch.stack([w.float().abs().amax() for w in weights]).max() / (2 ** (scheme.bits - 1) - 1)
        }

    def freeze(self, low, high, scheme):
        return {"init_scale": torch.maximum(-low, high) / (2 ** (scheme.act_bits - 1) - 1)}

    def encode(self, weight, scheme, v=0.0, global_scale=None):
        top = 2 ** (scheme.bits - 1) - 1
        codes = (weight.float() / global_scale + v).round().clamp(-top, top).to(torch.int8)
        tensors = {"codes": codes, "scale": global_scale.reshape(1)}
        return Codes(self.name, scheme, tuple(weight.shape), weight.dtype, tensors)

    def decode(self, codes):
        return (codes.tensors["codes"].float() * codes.tensors["scale"]).to(codes.dtype)


class Plugin:
    @hookimpl
    def quant_tensor(self):
        return [Thirds()]


@pytest.fixture
def thirds():
    Thirds.sets.clear()
    registry = default_registry()
    registry.register(Plugin(), name="thirds")
    yield registry
    registry.unregister("thirds")


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("iters", [0, 2])
@torch.no_grad()
def test_the_loaded_model_sees_what_the_tuned_one_saw(thirds, model_dir, tokens, tmp_path, dynamic, iters):
    scheme = QuantizationScheme(bits=6, group_size=-1, data_type="thirds", act_bits=6, act_dynamic=dynamic)
    weights_only = AutoRound(model_dir, scheme=scheme.replace(act_bits=16), dataset=tokens, iters=0, **RUN).quantize()[
        0
    ]
    job = AutoRound(model_dir, scheme=scheme, dataset=tokens, iters=iters, **RUN)
    tuned, _ = job.quantize_and_save(tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert torch.equal(loaded(tokens).logits, tuned(tokens).logits)
    assert not torch.equal(tuned(tokens).logits, weights_only(tokens).logits)
    stored = load_file(tmp_path / "out/model.safetensors")
    assert ("model.layers.0.mlp.up_proj.codes_input_init_scale" in stored) is not dynamic


def test_static_scales_stay_what_they_were_whatever_comes(thirds, model_dir, tokens):
    scheme = QuantizationScheme(bits=6, group_size=-1, data_type="thirds", act_bits=4, act_dynamic=False)
    model, _ = AutoRound(model_dir, scheme=scheme, dataset=tokens, iters=0, **RUN).quantize()
    seen = []
    layer = model.model.layers[0].mlp.down_proj
    layer.register_forward_hook(lambda _m, args, _o: seen.append(args[0]))
    with torch.no_grad():
        model(tokens)
        layer(torch.full((1, 48), 1e4, dtype=torch.bfloat16))
    assert seen[0].unique().numel() <= 15  # 4 bits: -7 to 7
    assert seen[1].max() == seen[0].abs().max()  # clamped to the range of calibration


def test_layers_that_share_an_input_decide_together(thirds, model_dir, tokens):
    scheme = QuantizationScheme(bits=6, group_size=-1, data_type="thirds")
    rounding = {"iters": 0, "disable_opt_rtn": True, "workers": 1, "verbose": False}  # several would take turns
    # Format fake asks for no codes, which a data type would have to share something for as well.
    AutoRound(model_dir, scheme=scheme, **rounding).quantize(format="fake")
    assert Thirds.sets[:4] == [[(32, 32), (16, 32), (16, 32)], [(32, 32)], [(48, 32), (48, 32)], [(32, 48)]]
    Thirds.sets.clear()
    other = {"layers.0.self_attn.q_proj": {"bits": 8}}
    AutoRound(model_dir, scheme=scheme, layer_config=other, **rounding).quantize(format="fake")
    assert Thirds.sets[:2] == [[(32, 32)], [(16, 32), (16, 32)]]


def test_an_expert_no_token_reached_takes_the_range_of_its_likes():
    class Seen:
        lows = {"b.experts.0.up": torch.tensor(-1.0), "b.experts.2.up": torch.tensor(-3.0)}  # noqa: RUF012 - a test
        highs = {"b.experts.0.up": torch.tensor(2.0), "b.experts.2.up": torch.tensor(1.0)}  # noqa: RUF012 - a test

    assert _range_of("b.experts.7.up", Seen) == (torch.tensor(-3.0), torch.tensor(2.0))
    assert _range_of("b.experts.0.up", Seen) == (torch.tensor(-1.0), torch.tensor(2.0))
    with pytest.raises(CalibrationError, match=r"b\.router"):
        _range_of("b.router", Seen)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_inputs_that_are_no_numbers_are_refused_by_the_layers_name(bad):
    class Seen:
        lows = {"b.up": torch.tensor(-1.0)}  # noqa: RUF012 - a test
        highs = {"b.up": torch.tensor(bad)}  # noqa: RUF012 - a test

    with pytest.raises(CalibrationError, match=r"b\.up, whose activations are static, got NaN or infinite"):
        _range_of("b.up", Seen)
