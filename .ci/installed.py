# SPDX-License-Identifier: Apache-2.0
"""Check distributions as installed: they import, and carry their licence and their type marker."""

import importlib
import sys
from importlib import metadata

for name in sys.argv[1:]:
    distribution = metadata.distribution(name)
    files = [str(file) for file in distribution.files or ()]
    package = next(file.split("/")[0] for file in files if file.endswith("/py.typed"))
    module = importlib.import_module(package)
    if module.__version__ != distribution.version:
        sys.exit(f"{name}: {package}.__version__ is {module.__version__}, the metadata say {distribution.version}")
    if not any(file.endswith("licenses/LICENSE") for file in files):
        sys.exit(f"{name}: no LICENSE")
    print(f"{name} {distribution.version}: {package}, {len(files)} files")
