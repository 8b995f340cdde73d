# SPDX-License-Identifier: Apache-2.0
import textwrap
import types

import pytest

from auto_round.plugins import Registry
from auto_round.testing.distributions import FakeDistribution, importable

HOOKS = "from auto_round.hookspecs import LazyDataType, LazyFormat, LazyPacking, hookimpl\n"
FUNCTION = "from auto_round.data_type.register import register_dtype\n"
SCHEME = "from auto_round.schemes import QuantizationScheme\n"


def offering(name, target="acme_math:Acme"):
    """Source of a plugin that offers one lazy data type."""
    return f"{HOOKS}\n@hookimpl\ndef quant_tensor():\n    return [LazyDataType({name!r}, {target!r}, 'a summary')]\n"


def declaring(*names):
    """Source of a plugin that only uses the decorator."""
    return (
        f"{FUNCTION}\n@register_dtype({list(names)!r})\n"
        "def quantize(tensor, bits=4, v=0):\n    'One line.'\n    return tensor, 1, None\n"
    )


def schemes(*names, data_type="acme_fp5"):
    """Source of a plugin that offers schemes."""
    made = ", ".join(f"{name!r}: QuantizationScheme(data_type={data_type!r})" for name in names)
    return f"{HOOKS}{SCHEME}\n@hookimpl\ndef schemes():\n    return {{{made}}}\n"


def data_type(name, class_name="Acme"):
    """Source of a data type."""
    return (
        "from auto_round.data_type import DataType\n"
        f"class {class_name}(DataType):\n    name = {name!r}\n"
        "    def quant_tensor(self, tensor, bits=4):\n        return tensor, 1, None\n"
    )


@pytest.fixture
def sources():
    """Writers of plugin sources."""
    return types.SimpleNamespace(declaring=declaring, offering=offering, schemes=schemes, data_type=data_type)


class Site:
    """A folder of distributions that look installed."""

    def __init__(self, folder):
        self.folder = folder

    def add(self, distribution, source="", version="1.0", plugin=None, module=None, **modules):
        module = module or distribution.replace("-", "_")
        plugin = plugin or distribution.removeprefix("autoround-")
        FakeDistribution(distribution, version, {plugin: module}, {module: source, **modules}).write(self.folder)

    def registry(self, **options):
        return Registry(path=[str(self.folder)], **options)

    def report(self, name, **options):
        return next(line for line in self.registry(**options).report() if line.name == name)


@pytest.fixture
def site(tmp_path):
    with importable([tmp_path]):
        yield Site(tmp_path)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for variable in ("DTYPES", "STRICT_PLUGINS", "TRACE", "TRACEBACK"):
        monkeypatch.delenv(f"AUTO_ROUND_{variable}", raising=False)


@pytest.fixture(autouse=True)
def as_before(isolated_registry):
    """What a test declares is gone afterwards."""


@pytest.fixture
def make_module():
    """Run a source as a module that nobody imported from a file."""

    def make(name, source):
        module = types.ModuleType(name)
        exec(compile(textwrap.dedent(source), name, "exec"), module.__dict__)
        return module

    return make
