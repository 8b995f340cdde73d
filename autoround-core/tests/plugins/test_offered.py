# SPDX-License-Identifier: Apache-2.0
import pytest

from auto_round.errors import ContractError
from auto_round.plugins import Registry

PRELUDE = """
from auto_round.data_type import DataType
from auto_round.export import OutputFormat, Packing
from auto_round.hookspecs import LazyDataType, LazyFormat, LazyPacking, hookimpl
from auto_round.schemes import QuantizationScheme

class Acme(DataType):
    name = "acme_fp5"
    summary = "five bits"
    def quant_tensor(self, tensor, bits=5): return tensor, 1, None

class Silent(DataType):
    name = "silent"

class Nameless(Acme):
    name = ""

class Odd(DataType):
    name = "odd"
    def quant_tensor(self, tensor, importance): return tensor, 1, None

class Acmeformat(OutputFormat):
    name = "acmeformat"
    def start(self, plan, model, directory): ...

class Acmepacking(Packing):
    name = "acme:packed"
    format = "acmeformat"
    aliases = ("acme:old",)
    def refuses(self, data_type, scheme, shape): return None
    def layout(self, scheme, shape): return {}
    def pack(self, codes): return {}
    def unpack(self, tensors, data_type, scheme, shape, dtype): ...

class Onealias(Acmepacking):
    aliases = "acme:old"

@hookimpl
def HOOK(): return VALUE
"""

REFUSED = [
    ("quant_tensor", "None", "quant_tensor() returned None; to offer nothing, return an empty list"),
    ("quant_tensor", "'acme_fp5'", "quant_tensor() returned 'acme_fp5' (str); it returns a list of"),
    ("quant_tensor", "{'acme_fp5': Acme()}", "it returns a list of LazyDataType records or DataType objects"),
    ("quant_tensor", "[Acme]", "returned the class Acme; return an object, Acme(), or a Lazy record"),
    ("quant_tensor", "[3]", "returned 3 (int) in its list; expected LazyDataType"),
    ("quant_tensor", "[Nameless()]", "with the name ''; a name is a string that is not empty"),
    ("quant_tensor", "[LazyDataType(4, 'a:b')]", "with the name 4; a name is a string"),
    ("quant_tensor", "[Silent()]", "Silent has no quant_tensor of its own"),
    ("quant_tensor", "[Odd()]", "asks for 'importance', which core does not offer"),
    ("quant_tensor", "[Acme(), LazyDataType('ACME-FP5', 'a:b')]", "return the data type acme_fp5 and ACME-FP5 twice"),
    ("schemes", "[('A', QuantizationScheme())]", "it returns a mapping of names to QuantizationScheme"),
    ("schemes", "{'A': {'bits': 4}}", "returned {'bits': 4} (dict) for 'A'; expected a QuantizationScheme"),
    ("schemes", "{4: QuantizationScheme()}", "returned the name 4"),
    ("schemes", "{'A4': QuantizationScheme(), 'a4': QuantizationScheme()}", "return the scheme A4 and a4 twice"),
    ("exporters", "[LazyDataType('a', 'b:c')]", "expected LazyFormat and LazyPacking records"),
    ("exporters", "[LazyPacking('acme:packed', 'a:b')]", "packing 'acme:packed' without the name of its format"),
    ("exporters", "[Onealias()]", "aliases must be a tuple of names"),
]


@pytest.mark.parametrize(("hook", "value", "reason"), REFUSED)
def test_what_a_hook_must_not_return(make_module, hook, value, reason):
    source = PRELUDE.replace("HOOK", hook).replace("VALUE", value)
    with pytest.raises(ContractError) as caught:
        Registry(entry_points=False).register(make_module("acme", source))
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("hook", "value", "names"),
    [
        ("quant_tensor", "[Acme(), LazyDataType('other', 'a:b', 'later')]", ["acme_fp5", "other"]),
        ("quant_tensor", "(t for t in [Acme()])", ["acme_fp5"]),
        ("quant_tensor", "[]", []),
    ],
)
def test_data_types(make_module, hook, value, names):
    registry = Registry(entry_points=False)
    registry.register(make_module("acme", PRELUDE.replace("HOOK", hook).replace("VALUE", value)))
    assert registry.data_type_names() == names
    assert [e.summary for e in registry.listing("data type")] == ["five bits", "later"][: len(names)]


def test_formats_and_packings(make_module):
    registry = Registry(entry_points=False)
    value = "[Acmeformat(), Acmepacking(), LazyPacking('acme:lazy', 'a:b', format='acmeformat')]"
    registry.register(make_module("acme", PRELUDE.replace("HOOK", "exporters").replace("VALUE", value)))
    assert registry.output_format("acmeformat").registry is registry
    assert registry.output_format("acmeformat") is registry.output_format("Acmeformat")
    assert registry.packing("acme:packed") is registry.packing("acme:old")
    line = registry.report()[-1]
    assert (line.formats, line.packings) == (("acmeformat",), ("acme:packed", "acme:lazy"))
