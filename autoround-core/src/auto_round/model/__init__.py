# SPDX-License-Identifier: Apache-2.0
"""Models: where they are, what they are made of, how their weights are read."""
