# SPDX-License-Identifier: Apache-2.0
"""Finished parts as files hold them: what shares memory is copied, what does not is not."""

import torch

from auto_round import Codes, QuantizationScheme
from auto_round.plan import LayerSpec
from auto_round.run.records import from_bytes, to_bytes, to_record
from auto_round.tuning.result import BlockResult, LayerResult


def part(registry, codes, scale):
    scheme = QuantizationScheme(bits=4, group_size=4, sym=True, data_type="steps").resolved()
    layers = []
    for name, of_layer in codes.items():
        spec = LayerSpec(name, (2, 4), torch.float32, "b", False, False, scheme, registry.data_type("steps"))
        stored = Codes("steps", scheme, (2, 4), torch.float32, {"codes": of_layer, "scale": scale})
        layers.append(LayerResult(spec, stored, None))
    return BlockResult("b", tuple(layers))


def test_memory_that_is_shared_is_copied_and_other_is_not(registry):
    codes = {"one": torch.ones(2, 4, dtype=torch.int8), "two": torch.ones(2, 4, dtype=torch.int8)}
    _, tensors = to_record(part(registry, codes, torch.ones(2, 1)))
    places = {name: tensor.data_ptr() for name, tensor in tensors.items()}
    assert len(set(places.values())) == len(tensors) == 4
    assert places["0.codes.codes"] == codes["one"].data_ptr()
    both = torch.ones(4, 4, dtype=torch.int8)
    _, tensors = to_record(part(registry, {"one": both[:2], "two": both[2:]}, torch.ones(2, 1)))
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors.values()}) == 4


def test_what_comes_back_is_decoded_when_it_is_asked_for(registry, monkeypatch):
    codes = {"one": torch.tensor([[1, 2, 3, 4], [-1, 0, 7, -7]], dtype=torch.int8)}
    told = part(registry, codes, torch.tensor([[0.5], [2.0]]))

    class Plan:
        quantized = tuple(result.layer for result in told.layers)

    decoded = []
    data_type = told.layers[0].layer.data_type
    decode = type(data_type).decode
    monkeypatch.setattr(type(data_type), "decode", lambda self, codes: decoded.append(codes) or decode(self, codes))
    back = from_bytes(to_bytes(told), Plan()).layers[0]
    assert not decoded
    assert back.weight.tolist() == [[0.5, 1.0, 1.5, 2.0], [-2.0, 0.0, 14.0, -14.0]]
    assert len(decoded) == 1
