# SPDX-License-Identifier: Apache-2.0
"""AutoRound: post-training quantization of language models, with data types as plugins.

Names are imported when they are used; importing this package loads neither torch nor any plugin.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from auto_round.autoround import AutoRound
    from auto_round.data_type import Codes, DataType, register_dtype
    from auto_round.errors import AutoRoundError
    from auto_round.hookspecs import hookimpl
    from auto_round.plugins import Registry
    from auto_round.schemes import PRESET_SCHEMES, QuantizationScheme

__version__ = "0.9.0"

__all__ = [
    "PRESET_SCHEMES",
    "AutoRound",
    "AutoRoundError",
    "Codes",
    "DataType",
    "QuantizationScheme",
    "Registry",
    "hookimpl",
    "register_dtype",
]

_HOMES = {
    "PRESET_SCHEMES": "auto_round.schemes",
    "AutoRound": "auto_round.autoround",
    "AutoRoundError": "auto_round.errors",
    "Codes": "auto_round.data_type",
    "DataType": "auto_round.data_type",
    "QuantizationScheme": "auto_round.schemes",
    "Registry": "auto_round.plugins",
    "hookimpl": "auto_round.hookspecs",
    "register_dtype": "auto_round.data_type",
}


def _warn_of_other_distribution() -> None:
    from auto_round.plugins.other_distribution import other_distribution

    sentence = other_distribution()
    if sentence:
        import warnings

        warnings.warn(sentence, RuntimeWarning, stacklevel=3)


_warn_of_other_distribution()


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
