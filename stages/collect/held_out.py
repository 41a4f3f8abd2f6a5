"""Check that no test row that was scored, nor a row of its group, is among the training rows as written."""

from __future__ import annotations

import pyarrow.compute as pc

from abctune.core.errors import UserError
from abctune.core.files import read_table
from abctune.core.places import EVAL, SPLIT


def require_held_out(variant: str) -> None:
    """No test row, nor another row of its group, may be among the variant's training rows.

    `split` ensures it; this checks what was really written and scored.

    Raises:
        UserError: some are.
    """
    path = SPLIT / variant / "train.parquet"
    train = read_table(path, f"split@{variant}", ["id", "group"])
    test = read_table(
        EVAL / variant / "conversations.parquet", f"eval@{variant}", ["id", "group", "replicate"]
    )
    test = test.filter(pc.equal(test["replicate"], pc.min(test["replicate"])))
    for column, what in (("id", "test rows are"), ("group", "test rows have a row of their group")):
        if n := pc.sum(pc.is_in(test[column], train[column].combine_chunks())).as_py():
            raise UserError(
                f"unfair comparison: {n:,} of {len(test):,} {what} among the rows {variant} was trained on "
                f"({path}); run `dvc repro --force --single-item split@{variant}`"
            )
