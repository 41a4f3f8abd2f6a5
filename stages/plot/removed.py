"""What variants that params.yaml no longer has have left in the folders that plot reads."""

from __future__ import annotations

from pathlib import Path

from abctune.core.files import remove
from abctune.core.params import Params
from abctune.core.places import COLLECTED, SERVED
from abctune.study.leftovers import leftovers


def forget_removed_variants(params: Params) -> None:
    """Drop collected copies of variants, and scores of exports, that params.yaml no longer has; name what else is left.

    They are part of folders that this stage depends on: DVC hashes them after the stage has run, so that the
    lock file says the same here as in a clone that never had those variants.
    """
    left = leftovers(params)
    for path in left:
        if within(path, COLLECTED, SERVED):
            remove(path)
    if others := [str(path) for path in left if not within(path, COLLECTED, SERVED)]:
        named = ", ".join(others)
        print(f"note: no variant or source of params.yaml has {named}; `python -m tools.prune` removes them")


def within(path: Path, *folders: Path) -> bool:
    """Whether a path is inside one of the folders."""
    return any(path.is_relative_to(folder) for folder in folders)
