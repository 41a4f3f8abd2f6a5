"""`dvc exp show` without the columns that nobody compares: `python -m tools.show`, or `make show`.

DVC shows every metric, every key of params.yaml and the hash of every dependency. This asks it for those that differ
among what is left after `DROPPED`: losses, gains over base and params. Any further option goes to `dvc exp show` as it
is, `--csv` for example.
"""

from __future__ import annotations

import subprocess
import sys

# Column names, as regular expressions.
DROPPED = (
    "Created",
    "State",
    "Executor",
    r".*/.*",  # hashes of dependencies
    r"verdict\..*",
    r"\w+\.(loss\..*|tasks\..*|forgetting$)",  # `loss.B` stays, the loss overall
)


def main() -> int:
    """Run `dvc exp show`; return its exit status."""
    options = ["--only-changed", "--drop", "|".join(DROPPED), *sys.argv[1:]]
    return subprocess.run([sys.executable, "-m", "dvc", "exp", "show", *options]).returncode


if __name__ == "__main__":
    sys.exit(main())
