"""The rows a variant trains on, and what of them the run will see."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset

from abctune.core.errors import UserError
from abctune.core.files import read_table
from abctune.core.params import TrainParams

SPLIT = Path("data/split")
COLUMNS = ["source", "input_ids", "labels", "n_tokens", "n_supervised"]


def load_subset(variant: str, side: str) -> pa.Table:
    """The variant's `train` or `val` rows, in training order."""
    path = SPLIT / variant / f"{side}.parquet"
    table = read_table(path, made_by=f"split@{variant}", columns=COLUMNS)
    if not table.num_rows:
        raise UserError(f"{path} has no rows; run `dvc repro split@{variant}`")
    return table


def as_dataset(table: pa.Table) -> Dataset:
    """The Trainer's view of the rows: token ids and labels, nothing left to prepare.

    The fingerprint names files in a cache that nothing here uses. Without one, `Dataset` makes it by hashing every row:
    4 s for the 100,000 rows of profile full's A, for each replicate.
    """
    return Dataset(table.select(["input_ids", "labels"]), fingerprint="rows")


def exposure(table: pa.Table, recipe: TrainParams) -> dict[str, Any]:
    """Conversations and tokens per source that the run sees.

    Args:
        table: the rows in training order; the run begins again at the first after the last.
        recipe: with its steps known. The last step of an epoch takes the rows that are left.
    """
    per_step, rows_in_all = recipe.conversations_per_step, table.num_rows
    whole, rest = divmod(recipe.steps, math.ceil(rows_in_all / per_step))
    seen = whole * rows_in_all + min(rest * per_step, rows_in_all)
    counts: dict[str, Counter[str]] = {
        "conversations": Counter(),
        "tokens": Counter(),
        "supervised_tokens": Counter(),
    }
    rows = table.select(["source", "n_tokens", "n_supervised"]).to_pylist()
    for index in range(seen):
        row = rows[index % len(rows)]
        counts["conversations"][row["source"]] += 1
        counts["tokens"][row["source"]] += row["n_tokens"]
        counts["supervised_tokens"][row["source"]] += row["n_supervised"]
    return {name: dict(sorted(counter.items())) for name, counter in counts.items()} | {
        "epochs": round(seen / len(rows), 4)
    }
