# SPDX-License-Identifier: Apache-2.0
"""What can go wrong, one class per kind of mistake.

Every message is one sentence or a short list that says what is wrong, where, and what to do about it. The command line
prints the message alone and exits with 1; a program catches `AutoRoundError` for all of them.
"""

from collections.abc import Iterable

__all__ = [
    "AutoRoundError",
    "CalibrationError",
    "ConflictError",
    "ContractError",
    "ModelError",
    "OutputError",
    "PlanError",
    "PluginError",
    "SchemeError",
    "UnknownNameError",
    "UnknownOptionError",
]


class AutoRoundError(Exception):
    """Base of every error this package raises on purpose."""


class UnknownNameError(AutoRoundError, KeyError):
    """A scheme, data type or format that no installed plugin offers. Also a `KeyError`, as mappings raise."""

    __str__ = AutoRoundError.__str__  # a KeyError would print its message in quotes


class UnknownOptionError(AutoRoundError, TypeError):
    """An option that does not exist. Also a `TypeError`, as Python raises for an unexpected keyword."""


class ConflictError(AutoRoundError):
    """Two distributions claim one name."""


class PluginError(AutoRoundError):
    """A plugin that was asked for is blocked, broken or made for another version of core."""


class ContractError(AutoRoundError):
    """A plugin breaks the contract of a data type, a packing or a format."""


class SchemeError(AutoRoundError, ValueError):
    """A field of a scheme, or a combination of fields, that means nothing."""


class ModelError(AutoRoundError):
    """A model that cannot be found, read, understood or trusted to be whole."""


class CalibrationError(AutoRoundError):
    """Calibration data that cannot be read or is too little."""


class OutputError(AutoRoundError):
    """The output directory cannot be used, or writing failed."""


class PlanError(AutoRoundError):
    """Everything that stands against a plan, collected, so that it is read once and mended once."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        if len(self.problems) == 1:
            super().__init__(self.problems[0])
        else:
            super().__init__("\n".join([f"{len(self.problems)} problems:", *(f"  - {p}" for p in self.problems)]))
