# SPDX-License-Identifier: Apache-2.0
"""Names of tensors in GGUF, by the gguf package's own map."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

import gguf

from auto_round_gguf.architectures import ARCHITECTURES

__all__ = ["map_name", "split_expert", "tensor_name"]

SUFFIXES = (".weight", ".bias")
EXPERT = re.compile(r"^(?P<stem>.*\.experts)\.(?P<number>\d+)\.(?P<rest>.*)$")


@functools.cache
def _name_map(arch: str, blocks: int) -> gguf.TensorNameMap:
    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    return gguf.get_tensor_name_map(number, blocks)


def split_expert(name: str) -> tuple[str, int | None]:
    """The name of the tensor of all experts that one expert's is a part of, and which part; None for any other."""
    found = EXPERT.match(name)
    return (f"{found['stem']}.{found['rest']}", int(found["number"])) if found else (name, None)


def map_name(arch: str, name: str, blocks: int) -> str | None:
    """The GGUF name of a checkpoint's tensor, with its suffix, None for one that files do not hold."""
    return _name_map(arch, blocks).get_name(name, SUFFIXES)


def tensor_name(config: Mapping[str, Any], layer: str, blocks: int) -> str | None:
    """The GGUF name, without `.weight`, of a layer of a model; None if its architecture is not covered."""
    architecture = ARCHITECTURES.get(str(config.get("model_type")))
    return None if architecture is None else map_name(architecture.name, split_expert(layer)[0], blocks)
