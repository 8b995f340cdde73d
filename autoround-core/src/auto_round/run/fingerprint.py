# SPDX-License-Identifier: Apache-2.0
"""Everything that decides a result, as plain data to compare: a run goes on only where an equal one was cut off."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import importlib_metadata
import torch

from auto_round import __version__

if TYPE_CHECKING:
    from auto_round.calibration import CalibrationTokens
    from auto_round.model.opened import OpenModel
    from auto_round.plan import Plan
    from auto_round.plugins import Registry
    from auto_round.tuning.options import TuningOptions

__all__ = ["Fingerprint", "differences", "fingerprint"]

Fingerprint = dict[str, Any]

SMALL = 1 << 22
"""Files up to this size are compared by content, weights by size and time: reading them twice would take minutes."""


def fingerprint(
    model: OpenModel,
    plan: Plan,
    options: TuningOptions,
    tokens: CalibrationTokens | None,
    registry: Registry,
    formats: Sequence[str],
    device: torch.device,
    ranks: int,
) -> Fingerprint:
    """What decides the result of a run, in terms that a message can name."""
    assert model.directory is not None
    tuning = {f.name: str(getattr(options, f.name)) for f in dataclasses.fields(options) if f.compare}
    return {
        "model": str(model.directory.resolve()),
        **{f"file {path.name}": told for path, told in _files(model.directory)},
        "scheme": plan.scheme_name,
        **{f"layer {name}": told for name, told in _layers(plan)},
        **tuning,
        "calibration data": "none" if tokens is None else tokens.fingerprint(),
        "formats": ",".join(formats),
        "keys and values": "" if plan.cache is None else plan.cache.data_type.name,
        "plugins": registry.digest(),
        "autoround-core": __version__,
        "torch": torch.__version__,
        "transformers": importlib_metadata.version("transformers"),
        "device": str(device),
        "threads": str(torch.get_num_threads()),
        "processes": str(ranks),
    }


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What differs, each as `name: this one, not that one`."""
    missing = "nothing"
    return [
        f"{key}: {one.get(key, missing)}, not {other.get(key, missing)}"
        for key in dict.fromkeys([*one, *other])
        if one.get(key, missing) != other.get(key, missing)
    ]


def _files(directory: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted(p for p in directory.iterdir() if p.is_file() and not p.name.startswith(".")):
        found = path.stat()
        if found.st_size <= SMALL and path.suffix != ".safetensors":
            yield path, hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            yield path, f"{found.st_size} bytes of {found.st_mtime_ns}"


def _layers(plan: Plan) -> Iterator[tuple[str, str]]:
    for layer in plan.quantized:
        assert layer.data_type is not None
        activation = layer.activation.name if layer.activation else "none"
        fields = ", ".join(f"{k}={v}" for k, v in layer.scheme.to_dict().items())
        yield layer.name, f"{layer.data_type.name}, activations {activation}, scales {layer.scale_dtype}, {fields}"
