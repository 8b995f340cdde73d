# SPDX-License-Identifier: Apache-2.0
"""Data types that write into what they are given: found before anything is written, and named."""

from typing import ClassVar

import pytest
import torch

from auto_round import AutoRound, DataType, QuantizationScheme
from auto_round.data_type.activation import ActivationQuantizer
from auto_round.data_type.untouched import WrittenIntoError
from auto_round.errors import ContractError
from auto_round.hookspecs import hookimpl

SCHEME = QuantizationScheme(4, 32, True, "writes")


class Writes(DataType):
    name = "writes"
    tuned: ClassVar = {"v": None}

    def quant_tensor(self, tensor, bits=4, group_size=32, v=0.0):
        tensor.mul_(0.5)
        return tensor + 0 * torch.as_tensor(v).sum(), None, None


class WritesARow(Writes):
    def quant_tensor(self, tensor, bits=4, group_size=32, v=0.0):
        tensor.view(-1, group_size)[0].clamp_(-1, 1)  # changes nothing here, and would elsewhere
        return tensor + 0 * torch.as_tensor(v).sum(), None, None


class WritesInSearch(Writes):
    searches = True

    def quant_tensor(self, tensor, bits=4, group_size=32, v=0.0):
        return tensor + 0 * torch.as_tensor(v).sum(), None, None

    def search(self, weight, scheme, *, imatrix, scale_dtype):
        weight.abs_()
        return {}


class Plugin:
    __version__ = "0.3"

    def __init__(self, data_type):
        self.data_type = data_type

    @hookimpl
    def quant_tensor(self):
        return [self.data_type()]


@pytest.mark.parametrize("iters", [0, 2])
@pytest.mark.parametrize("data_type", [Writes, WritesARow, WritesInSearch])
def test_writing_into_a_weight_ends_the_run_and_names_who(registry, model_dir, tokens, tmp_path, data_type, iters):
    registry.register(Plugin(data_type), name="acme")
    out = tmp_path / "out"
    job = AutoRound(model_dir, scheme=SCHEME, registry=registry, dataset=tokens, iters=iters, nsamples=4, verbose=False)
    with pytest.raises(ContractError) as caught:
        job.quantize_and_save(out, format="fake")
    told = str(caught.value)
    assert told.startswith("data type writes writes into the weight of layer model.layers.0.self_attn.q_proj,")
    assert told.endswith("It comes with plugin acme 0.3.")
    assert not out.exists()


def test_writing_into_a_neighbour_is_no_writing(registry, tokens):
    """Layers that are views of one tensor, experts: what core itself writes into one is no change of the other."""
    from torch import nn

    from auto_round.plan import LayerSpec
    from auto_round.tuning.layer import TunableLinear

    both = torch.randn(2, 8, 32)
    layers = []
    for part in both:
        linear = nn.Linear(32, 8, bias=False)
        linear.weight = nn.Parameter(part, requires_grad=False)
        spec = LayerSpec("a", (8, 32), torch.float32, None, False, False, SCHEME, registry.data_type("steps"))
        layers.append(TunableLinear(linear, spec, torch.float32, torch.device("cpu")))
        linear.weight.zero_()
        both.add_(1)
    for layer in layers:
        layer.check_weight()
        layer.weight[0] = 1
        with pytest.raises(WrittenIntoError, match="writes into the weight of layer a"):
            layer.check_weight()


def test_writing_into_activations_is_found_at_the_first_call():
    scheme = QuantizationScheme(
        16, 32, True, "writes", act_bits=8, act_group_size=32, act_data_type="writes"
    ).resolved()
    with pytest.raises(WrittenIntoError, match="data type writes writes into the input of a layer"):
        ActivationQuantizer(Writes(), scheme)(torch.ones(2, 32))
    with torch.inference_mode():  # nothing is counted there
        ActivationQuantizer(Writes(), scheme)(torch.ones(2, 32))
