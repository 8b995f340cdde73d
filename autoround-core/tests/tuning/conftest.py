# SPDX-License-Identifier: Apache-2.0
"""A layer whose every number can be computed by hand, and a short run of a small model."""

import torch
from torch import nn

from auto_round import AutoRound
from auto_round.data_type import FunctionDataType
from auto_round.data_type.register import accepted_offers
from auto_round.plan import LayerSpec
from auto_round.schemes import QuantizationScheme
from auto_round.tuning.layer import TunableLinear


def shift(tensor, v=0.0):
    """A weight that is moved by what is learnt: nothing is rounded."""
    return tensor + v, None, None


def layer_of(weight, function=shift, data_type=None, group_size=-1):
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data = weight.clone()
    scheme = QuantizationScheme(bits=4, group_size=group_size, data_type="it").resolved()
    data_type = data_type or FunctionDataType("it", function, accepted_offers(function))
    spec = LayerSpec("it", tuple(weight.shape), torch.float32, "b", False, False, scheme, data_type)
    return TunableLinear(linear, spec, torch.float32, torch.device("cpu"))


def tune(directory, registry, tokens, **options):
    """Weights after a few large steps, and the job."""
    job = AutoRound(
        directory, scheme="STEPS4", dataset=tokens, registry=registry, nsamples=8, batch_size=4, iters=4, lr=0.1,
        verbose=False, **options,
    )  # fmt: skip
    model, _ = job.quantize()
    return {name: p.clone() for name, p in model.named_parameters()}, job
