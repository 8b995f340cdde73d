# SPDX-License-Identifier: Apache-2.0
"""Two plugins claim the name of a data type: whoever asks for one of them gets it, all the way into a file."""

from dataclasses import replace

import pytest
import torch

from auto_round import QuantizationScheme
from auto_round.errors import ConflictError
from auto_round.plan import Plan
from auto_round.runtime_table import ordinary_layer

STORED = """
from auto_round.data_type import Codes, DataType
class Twin(DataType):
    name = "twin4"
    encodes = True
    def quant_tensor(self, tensor): return tensor * {factor}, 1, None
    def encode(self, weight, scheme):
        return Codes(self.name, scheme, tuple(weight.shape), weight.dtype, {{"halved": weight * {factor}}})
    def decode(self, codes): return codes.tensors["halved"]
"""


@pytest.fixture
def registry(site, sources):
    for name, version in (("one", "1.0"), ("two", "2.0")):
        offering = sources.offering("twin4", f"{name}_math:Twin")
        factor = {"factor": 0.5 if name == "one" else 0.25}
        site.add(f"acme-{name}", offering, version, name, **{f"{name}_math": STORED.format(**factor)})
    return site.registry()


def plan_of(registry, *data_types):
    """A plan of one layer for each."""
    layers = [ordinary_layer(registry, QuantizationScheme(4, 32, True, data_type)) for data_type in data_types]
    named = tuple(replace(layer, name=f"block.{n}.linear") for n, layer in enumerate(layers))
    return Plan("model", "Llama", "", layers[0].scheme, named, ("block.0", "block.1"), 0)


def test_who_made_an_object_is_clear(registry):
    for name, version in (("one", "1.0"), ("two", "2.0")):
        found = registry.provenance(registry.data_type(f"acme-{name}:twin4"))
        assert (found.plugin, found.distribution, found.version) == (name, f"acme-{name}", version)
    with pytest.raises(ConflictError):
        registry.provenance("twin4")


def test_the_one_that_was_asked_for_is_in_the_file(registry):
    plan = plan_of(registry, "acme-two:twin4")
    container = registry.output_format("auto_round")
    assert container.refuses(plan.layers[0]) is None
    config = container.quantization_config(plan)
    assert config["provenance"] == {"twin4": {"distribution": "acme-two", "version": "2.0"}}
    assert (config["data_type"], config["packing_format"]) == ("acme-two:twin4", "auto_round:codes")
    packing, layer = container.packing(plan.layers[0]), plan.layers[0]
    stored = packing.pack(layer.data_type.encode(torch.ones(layer.shape), layer.scheme))
    again = packing.unpack(stored, "twin4", layer.scheme, layer.shape, torch.float32)
    assert layer.data_type.decode(again).unique().item() == 0.25


def test_a_file_with_both_names_both(registry):
    config = registry.output_format("auto_round").quantization_config(plan_of(registry, "one:twin4", "two:twin4"))
    makers = {(source["distribution"], source["version"]) for source in config["provenance"].values()}
    assert makers == {("acme-one", "1.0"), ("acme-two", "2.0")}


PLAIN = """
from auto_round.data_type.register import register_dtype
@register_dtype("{name}")
def quant(tensor, bits=4, group_size=32): return tensor * 0.5, None, None
"""


def test_a_name_that_completes_anothers_scheme_is_a_conflict(site):
    """Whatever else is installed, a scheme means what it meant, or nothing."""
    site.add("acme-one", PLAIN.format(name="thirds_sym"), "1.0", "one")
    scheme = QuantizationScheme(4, 32, True, "thirds")
    assert site.registry().data_type_for(scheme).name == "thirds_sym"
    site.add("acme-two", PLAIN.format(name="thirds4"), "1.0", "two")
    registry = site.registry()
    with pytest.raises(ConflictError, match="thirds is claimed by .*acme-two:thirds4 and .*acme-one:thirds_sym"):
        registry.data_type_for(scheme)
    assert registry.data_type_for(scheme, ["thirds_sym"]).name == "thirds_sym"
    assert registry.data_type_for(scheme, {"thirds4": {}}).name == "thirds4"
    with pytest.raises(ConflictError):
        registry.data_type_for(scheme, ["something_else"])
    assert registry.data_type_for(QuantizationScheme(4, 32, True, "thirds_sym")).name == "thirds_sym"
