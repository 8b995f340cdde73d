# SPDX-License-Identifier: Apache-2.0
"""AutoRound: post-training quantization of language models, with data types as plugins.

Names are imported when they are used; importing this package loads neither torch nor any plugin.
"""

__version__ = "0.9.0"
