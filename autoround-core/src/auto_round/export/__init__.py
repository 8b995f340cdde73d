# SPDX-License-Identifier: Apache-2.0
"""Output formats: what a finished layer becomes on disk."""

from auto_round.export.format import Exporter, OutputFormat
from auto_round.export.packing import Packing, TensorLayout

__all__ = ["Exporter", "OutputFormat", "Packing", "TensorLayout"]
