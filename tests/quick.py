"""Which tests `make check` runs: the quick ones, and the slow ones next to code that is being changed.

Left out are tests that run a project (tests/conftest.py), and those of tests/slow.txt, which take over half a second each.
A slow test runs all the same while its own file, or the code that its folder is named after, has uncommitted changes:
tests/plot while stages/plot has, tests/study while abctune/study has, tests/app while app has.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

SLOW = Path(__file__).with_name("slow.txt")
CHANGED = "ABCTUNE_TESTS_CHANGED"  # the variable that gives all workers one list of files


def find_changed(root: Path) -> None:
    """Note the files with uncommitted changes for this process and the workers that it starts."""
    listings = (["diff", "--name-only", "HEAD"], ["ls-files", "--others", "--exclude-standard"])
    names = [
        subprocess.run(["git", *listing], cwd=root, capture_output=True, text=True, check=True).stdout
        for listing in listings
    ]
    os.environ[CHANGED] = "".join(names)


def slow_tests() -> frozenset[str]:
    """The functions that tests/slow.txt names, as `tests/plot/test_plot.py::test_...`."""
    lines = SLOW.read_text(encoding="utf-8").splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))


def is_left_out(test: str, runs_project: bool, slow: frozenset[str], changed: Iterable[str]) -> bool:
    """Whether `make check` leaves out a test.

    Args:
        test: pytest's name of it, from the project's root.
        runs_project: whether it has the marker `project`.
        slow: what `slow_tests` gives.
        changed: files with uncommitted changes, from the project's root.
    """
    function = test.partition("[")[0]
    if runs_project or function not in slow:
        return runs_project
    file = Path(function.partition("::")[0])
    areas = {_area(Path(name)) for name in changed}
    return file.as_posix() not in changed and (len(file.parts) < 3 or file.parts[1] not in areas)


def _area(file: Path) -> str:
    """The part of the project that a file is of: plot, study, app, ..."""
    nested = file.parts[0] in ("abctune", "stages", "tests") and len(file.parts) > 2
    return file.parts[1] if nested else file.parts[0]
