# SPDX-License-Identifier: Apache-2.0
"""What a file says of where it comes from: the model, its card, and how it was quantized.

Names, licence, languages and the like are read from the model's directory by the gguf package, which has llama.cpp's
own rules for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import gguf

from auto_round_gguf.importance import LayerImportance
from auto_round_gguf.mixtures import Preset
from auto_round_gguf.settings import imatrix_to_read

if TYPE_CHECKING:
    from auto_round.model.opened import OpenModel
    from auto_round.plan import Plan

__all__ = ["write_general"]

IMATRIX_FILE, IMATRIX_ENTRIES = "quantize.imatrix.file", "quantize.imatrix.entries_count"
"""Keys that llama.cpp's quantizer writes."""


def write_general(
    writer: gguf.GGUFWriter,
    plan: Plan,
    model: OpenModel,
    preset: Preset,
    importance: Sequence[LayerImportance],
) -> None:
    """Write everything below `general.`, and provenance."""
    from auto_round import __version__ as core_version
    from auto_round_gguf import __version__

    name = Path(plan.model).name or plan.architecture
    writer.add_type(gguf.GGUFType.MODEL)
    weights = sum(p.numel() for p in model.model.parameters())
    found = gguf.Metadata.load(None, model.directory, None if model.directory else name, weights)
    found.name = found.name or name
    found.size_label = found.size_label or gguf.size_label(weights, 0, 0, 0)
    found.quantized_by = f"autoround-gguf {__version__}"
    found.set_gguf_meta_model(writer)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(preset.file_type)
    writer.add_string("auto_round.version", core_version)
    writer.add_string("auto_round.scheme", plan.scheme_name)
    given = sum(layer.given is not None for layer in importance)
    if given:
        writer.add_string(IMATRIX_FILE, str(imatrix_to_read()))
        writer.add_uint32(IMATRIX_ENTRIES, given)
