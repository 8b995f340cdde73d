# SPDX-License-Identifier: Apache-2.0
"""Another project that uses our import name: installed into one environment, the two overwrite each other's files."""

from __future__ import annotations

import importlib_metadata

__all__ = ["other_distribution"]

_OURS = "autoround-core"
_OTHER = "auto-round"


def other_distribution() -> str | None:
    """The sentence to show if the other distribution is installed here too, or None."""
    try:
        version = importlib_metadata.version(_OTHER)
    except importlib_metadata.PackageNotFoundError:
        return None
    return (
        f"the distribution {_OTHER} {version} is installed beside {_OURS} and uses the same import name, auto_round, "
        f"so files of one may replace the other's: pip uninstall {_OTHER}, then pip install --force-reinstall {_OURS}."
    )
