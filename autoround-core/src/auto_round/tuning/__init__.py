# SPDX-License-Identifier: Apache-2.0
"""Learning how to round: block by block, by the sign of the gradient. Without iterations the same loop just rounds."""
