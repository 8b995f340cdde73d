# SPDX-License-Identifier: Apache-2.0
"""What a data type is, for those who write one. Nothing here knows any particular data type."""

from auto_round.data_type.codes import Codes
from auto_round.data_type.record import Bounds, DataType, FunctionDataType, Kernel, Runtime
from auto_round.data_type.register import register_dtype

__all__ = ["Bounds", "Codes", "DataType", "FunctionDataType", "Kernel", "Runtime", "register_dtype"]
