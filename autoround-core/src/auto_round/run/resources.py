# SPDX-License-Identifier: Apache-2.0
"""What a run may use of a machine: the device that blocks compute on, and threads."""

from __future__ import annotations

import os

import torch

from auto_round.errors import UnknownOptionError

__all__ = ["device_named", "workers_wanted"]


def workers_wanted(wanted: int | None) -> int:
    """Sets of layers to round at once: as many as there are threads if nothing is said.

    Raises:
        UnknownOptionError: no whole number of at least 1.
    """
    if wanted is None:
        return max(1, torch.get_num_threads())
    if not isinstance(wanted, int) or isinstance(wanted, bool) or wanted < 1:
        raise UnknownOptionError(f"workers must be a whole number of at least 1, not {wanted!r}.")
    return wanted


def device_named(device_map: str | int | torch.device | None) -> torch.device:
    """The device a user means; of several processes on one machine each has its own.

    Raises:
        UnknownOptionError: there is no such device.
    """
    if device_map is None or device_map == "auto":
        device_map = "cuda" if torch.cuda.is_available() else "cpu"
    if device_map == "cuda" and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        # Each process that `torchrun` starts on this machine has a GPU of its own.
        device_map = int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count()
    try:
        device = torch.device(f"cuda:{device_map}" if isinstance(device_map, int) else device_map)
    except (RuntimeError, TypeError) as error:
        raise UnknownOptionError(f"device_map={device_map!r} names no device: {error}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UnknownOptionError(f"device_map={device_map!r}: this machine has no CUDA device.")
    return device
