# SPDX-License-Identifier: Apache-2.0
"""What `pip install -e .` leaves behind, without an installer: metadata, and the packages by reference."""

import sys
from pathlib import Path

from auto_round.testing.distributions import FakeDistribution

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def install(project, site):
    """Make a folder that is on `sys.path` look as if the project were installed into it."""
    described = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    about = described["project"]
    requires = tuple(about["dependencies"])
    plugins = about["entry-points"]["auto_round.dtypes"]
    FakeDistribution(about["name"], about["version"], plugins, requires=requires).write(site)
    for package in described["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        link = site / Path(package).name
        if not link.exists():
            link.symlink_to(project / package)


if __name__ == "__main__":
    assert sys.argv[2:] == ["install", "-e", "."], sys.argv
    install(Path.cwd(), Path(sys.argv[1]))
