"""Gather what `plot` reads of one variant into metrics/collected/<variant>: `python -m stages.collect VARIANT`.

DVC can depend on a folder, but not on a list of folders that follows from params.yaml. So `plot` depends on
metrics/collected as a whole; it removes there what belongs to no variant (abctune/study/inputs.py), and results of a
variant that was removed from params.yaml neither enter a report nor make `plot` out of date in another clone.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.compute as pc
import typer

from abctune.core.errors import UserError, exits_with_one_line
from abctune.core.files import atomic_output, read_table
from abctune.core.params import ItemArgument, load_params
from abctune.core.records import (
    EvalRecord,
    FormatRecord,
    MixRecord,
    Record,
    SplitRecord,
    TrainingRecord,
    read_record,
    write_record,
)
from abctune.study.places import COLLECTED, DATA, EVAL, TRAIN


@exits_with_one_line
def main(variant: ItemArgument) -> None:
    """Check that no test row was trained on, then copy."""
    load_params().require_variant(variant)
    require_held_out(variant)
    with atomic_output(COLLECTED / variant) as folder:
        folder.mkdir()
        for path, name, record, stage in documents_of(variant):
            write_record(folder / name, read_record(path, record, f"{stage}@{variant}"))
        shutil.copytree(EVAL / variant, folder / "eval")
        shutil.copytree(TRAIN / variant, folder / "train")


def documents_of(variant: str) -> list[tuple[Path, str, type[Record], str]]:
    """The JSON documents: path, name in the variant's folder, type, and the stage that writes it."""
    return [
        (TRAIN / variant / "training.json", "training.json", TrainingRecord, "train"),
        (EVAL / variant / "metrics.json", "metrics.json", EvalRecord, "eval"),
        (DATA / "mixed" / f"{variant}.json", "mixed.json", MixRecord, "mix"),
        (DATA / "formatted" / variant / "summary.json", "formatted.json", FormatRecord, "format"),
        (DATA / "split" / variant / "summary.json", "split.json", SplitRecord, "split"),
    ]


def require_held_out(variant: str) -> None:
    """No test row, nor another row of its group, may be among the variant's training rows.

    `split` ensures it; this checks what was really written and scored.

    Raises:
        UserError: some are.
    """
    path = DATA / "split" / variant / "train.parquet"
    train = read_table(path, f"split@{variant}", ["id", "group"])
    test = read_table(
        EVAL / variant / "conversations.parquet", f"eval@{variant}", ["id", "group", "replicate"]
    )
    test = test.filter(pc.equal(test["replicate"], pc.min(test["replicate"])))
    for column, what in (("id", "test rows are"), ("group", "test rows have a row of their group")):
        if n := pc.sum(pc.is_in(test[column], train[column].combine_chunks())).as_py():
            raise UserError(
                f"unfair comparison: {n:,} of {len(test):,} {what} among the rows {variant} was trained on "
                f"({path}); run `dvc repro --force split@{variant}`"
            )


if __name__ == "__main__":
    typer.run(main)
