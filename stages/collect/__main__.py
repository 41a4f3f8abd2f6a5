"""Gather what `plot` reads of one variant into metrics/collected/<variant>: `python -m stages.collect VARIANT`.

DVC can depend on a folder, but not on a list of folders that follows from params.yaml. So `plot` depends on
metrics/collected as a whole; it removes there what belongs to no variant (stages/plot/removed.py), and results of a
variant that was removed from params.yaml neither enter a report nor make `plot` out of date in another clone.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import typer

from abctune.core.errors import exits_with_one_line
from abctune.core.files import atomic_output
from abctune.core.params import ItemArgument, load_params
from abctune.core.places import COLLECTED, EVAL, FORMATTED, MIXED, SPLIT, TRAIN
from abctune.core.records import (
    EvalRecord,
    FormatRecord,
    MixRecord,
    Record,
    SplitRecord,
    TrainingRecord,
    read_record,
)
from stages.collect.held_out import require_held_out


@exits_with_one_line
def main(variant: ItemArgument) -> None:
    """Check that no test row was trained on, then copy."""
    load_params().require_variant(variant)
    require_held_out(variant)
    with atomic_output(COLLECTED / variant) as folder:
        folder.mkdir()
        for path, name, record, stage in documents_of(variant):
            read_record(path, record, f"{stage}@{variant}")  # refuses what another version wrote
            shutil.copyfile(path, folder / name)
        shutil.copytree(EVAL / variant, folder / "eval")
        shutil.copytree(TRAIN / variant, folder / "train")


def documents_of(variant: str) -> list[tuple[Path, str, type[Record], str]]:
    """The JSON documents: path, name in the variant's folder, type, and the stage that writes it."""
    return [
        (TRAIN / variant / "training.json", "training.json", TrainingRecord, "train"),
        (EVAL / variant / "metrics.json", "metrics.json", EvalRecord, "eval"),
        (MIXED / f"{variant}.json", "mixed.json", MixRecord, "mix"),
        (FORMATTED / variant / "summary.json", "formatted.json", FormatRecord, "format"),
        (SPLIT / f"{variant}.json", "split.json", SplitRecord, "split"),
    ]


if __name__ == "__main__":
    typer.run(main)
