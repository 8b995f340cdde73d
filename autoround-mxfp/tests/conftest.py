# SPDX-License-Identifier: Apache-2.0
"""What the tests of the microscaling family share."""

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


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    # On tensors this small, threads wait for each other longer than they work, on a busy machine by far.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
