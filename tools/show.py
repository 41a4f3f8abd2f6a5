"""`dvc exp show` without the columns that nobody compares: `python -m tools.show`, or `make show`.

DVC shows every metric, every key of params.yaml and the hash of every dependency. This asks it for those that differ
among what is left after `DROPPED`: each model's loss, and params. Any further option goes to `dvc exp show` as it is:
`--csv`, or `--keep '.*vs_base'` for the gains over base with their intervals, which are 30 characters wide each.
"""

from __future__ import annotations

import os
import subprocess
import sys

# Column names, as regular expressions.
DROPPED = (
    "Created",
    "State",
    "Executor",
    r".*/.*",  # hashes of dependencies
    r"verdict\..*",
    r"\w+\.(vs_base|loss\..*|tasks\..*|forgetting)",  # `loss.B` stays, the loss overall
)
# In a terminal DVC's pager moves sideways. In a pipe DVC shortens columns to 80 characters in all, unless told a width.
WIDE = {"COLUMNS": "1000"}


def main() -> int:
    """Run `dvc exp show`; return its exit status."""
    options = ["--only-changed", "--drop", "|".join(DROPPED), *sys.argv[1:]]
    environment = os.environ if sys.stdout.isatty() else os.environ | WIDE
    command = [sys.executable, "-m", "dvc", "exp", "show", *options]
    return subprocess.run(command, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
