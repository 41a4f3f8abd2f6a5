"""What variants that params.yaml no longer has have left in the folders that plot reads."""

from __future__ import annotations

import shutil
from pathlib import Path

from abctune.core.params import Params
from abctune.study.leftovers import leftovers
from abctune.study.places import COLLECTED, SERVED


def forget_removed_variants(params: Params) -> None:
    """Drop collected copies of variants, and scores of exports, that params.yaml no longer has; name what else is left.

    They are part of folders that this stage depends on: DVC hashes them after the stage has run, so that the
    lock file says the same here as in a clone that never had those variants.
    """
    left = leftovers(params)
    for path in left:
        if within(path, COLLECTED, SERVED) and path.exists():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if others := [str(path) for path in left if not within(path, COLLECTED, SERVED)]:
        named = ", ".join(others)
        print(f"note: no variant or source of params.yaml has {named}; `python -m tools.prune` removes them")


def within(path: Path, *folders: Path) -> bool:
    """Whether a path is inside one of the folders."""
    return any(path.is_relative_to(folder) for folder in folders)
