# SPDX-License-Identifier: Apache-2.0
"""`python -m auto_round`, which is also what `torchrun -m auto_round` starts."""

from auto_round.cli.main import main

__all__: list[str] = []

if __name__ == "__main__":
    main(prog_name="auto-round")
