"""data/raw, where fetch puts the sources."""

from __future__ import annotations

import shutil
from collections.abc import Container
from pathlib import Path

from abctune.core.places import RAW


def rows_file(source: str) -> Path:
    """Where fetch puts a source's rows."""
    return RAW / source / "rows.parquet"


def remove_leftovers(sources: Container[str]) -> None:
    """Remove fetched sources that params.yaml no longer has.

    DVC can depend on data/raw as a whole only: with them in it, mix would be out of date in every other clone. DVC's cache
    still has them.
    """
    for path in RAW.glob("*/"):
        if path.name not in sources and (path / "source.json").exists():
            shutil.rmtree(path)
