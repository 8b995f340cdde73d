# SPDX-License-Identifier: Apache-2.0
"""What the tests of the family share."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

GOLDEN = Path(__file__).parent / "golden"


def _recorded(name):
    """Description and tensors of every case recorded from auto-round 0.16.1 under a registered name."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        names = file.keys()
        for i, case in enumerate(json.loads(file.metadata()["cases"])):
            prefix = f"case{i}."
            yield case, {n.removeprefix(prefix): file.get_tensor(n) for n in names if n.startswith(prefix)}


@pytest.fixture(scope="session")
def recorded():
    return _recorded


@pytest.fixture
def normal():
    """Normal numbers, the same ones for the same shape and seed."""

    def draw(*shape, seed=0):
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    return draw
