"""The rows a variant trains on, and what of them the run will see."""

from __future__ import annotations

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
    """The Trainer's view of the rows: token ids and labels, nothing left to prepare."""
    return Dataset(table.select(["input_ids", "labels"]))


def exposure(table: pa.Table, recipe: TrainParams) -> dict[str, Any]:
    """Conversations and tokens per source that the run will see: the first rows of the file, again from the start at its end."""
    seen = recipe.max_steps * recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
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
