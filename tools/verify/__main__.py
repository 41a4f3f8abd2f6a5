"""Check every result of the last run against what is written about it: `python -m tools.verify`.

Ends with status 1 and a line for each thing that is wrong.
"""

from __future__ import annotations

import sys
import time

from abctune.core.errors import exits_with_one_line
from abctune.core.params import load_params
from tools.command import run_command
from tools.verify.run import verify


@exits_with_one_line
def main() -> None:
    """Print every fault, one per line on stderr; exit with status 1 if there is one."""
    started = time.perf_counter()
    found = verify(load_params())
    for fault in found.faults:
        print(f"wrong: {fault}", file=sys.stderr)
    for note in found.notes:
        print(f"note: {note}")
    seconds = time.perf_counter() - started
    print(f"hashed {found.files:,} files, {found.size / 2**20:,.0f} MiB, in {seconds:.1f} s in all")
    if found.faults:
        raise SystemExit(1)
    print(
        "all outputs are those of dvc.lock, all adapters fit their base, and summary.json follows from the conversations"
    )


if __name__ == "__main__":
    run_command(main)
