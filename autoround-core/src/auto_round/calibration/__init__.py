# SPDX-License-Identifier: Apache-2.0
"""Calibration data: from text, files, Hub data sets or tokens to one padded batch of samples."""

from auto_round.calibration.loading import load_calibration
from auto_round.calibration.tokens import CalibrationTokens

__all__ = ["CalibrationTokens", "load_calibration"]
