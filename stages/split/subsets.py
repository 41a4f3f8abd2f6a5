"""A variant's rows, each written to its subset and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from abctune.core.files import count_rows, parquet_writer, read_batches
from abctune.core.parallel import over_batches
from abctune.core.params import SplitParams
from stages.split.buckets import SUBSETS, Subset, subset_of
from stages.split.contamination import HeldOut

COMPARED = ["id", "group", "messages"]
COUNTED = ["id", "group", "source", "n_tokens", "n_supervised"]


class Assigner:
    """Assigns rows to subsets and counts, per source, what went where."""

    def __init__(self, split: SplitParams) -> None:
        self._split = split
        self._counts: dict[str, Counter[str]] = {}
        self.refused: list[
            dict[str, Any]
        ] = []  # id, source and reason of the training rows that were dropped

    def subset(self, row: dict[str, Any], reason: str | None) -> Subset | None:
        """The row's subset, or None for a training row that is too near to a held-out one, for the given reason."""
        counts = self._counts.setdefault(row["source"], Counter())
        subset = subset_of(row["group"], self._split)
        if subset == "train" and reason:
            counts.update({"contaminated": 1, f"contaminated_{reason}": 1})
            self.refused.append({"id": row["id"], "source": row["source"], "reason": reason})
            return None
        counts.update(
            {subset: 1, f"{subset}_tokens": row["n_tokens"], f"{subset}_supervised": row["n_supervised"]}
        )
        return subset

    def summary(self) -> dict[str, dict[str, int]]:
        """The counts so far, by source."""
        return {source: dict(sorted(counts.items())) for source, counts in sorted(self._counts.items())}


def start_comparing(held_out: HeldOut, split: SplitParams) -> Callable[[pa.RecordBatch], list[str | None]]:
    """For each row of a batch why it must not be trained on, or None: the part of the work that processes share."""

    def compare(batch: pa.RecordBatch) -> list[str | None]:
        """One reason or None for each row of a batch."""
        rows = batch.to_pylist()
        return [held_out.near(row) if subset_of(row["group"], split) == "train" else None for row in rows]

    return compare


def write_subsets(
    rows: Path, made_by: str, folder: Path, assigner: Assigner, held_out: HeldOut, split: SplitParams
) -> None:
    """Stream a variant's rows into train.parquet, val.parquet and test.parquet, in their order."""
    schema = pq.read_schema(rows)
    compare = partial(start_comparing, held_out, split)
    with ExitStack() as stack:
        writers = {
            subset: stack.enter_context(parquet_writer(folder / f"{subset}.parquet", schema))
            for subset in SUBSETS
        }
        compared = read_batches(rows, made_by, columns=COMPARED)
        reasons = over_batches(compared, compare, count_rows(rows, made_by))
        for batch, found_near in zip(read_batches(rows, made_by), reasons, strict=True):
            counted = zip(batch.select(COUNTED).to_pylist(), found_near, strict=True)
            found = [assigner.subset(row, reason) for row, reason in counted]
            for subset, writer in writers.items():
                writer.write_batch(batch.filter(pa.array([one == subset for one in found])))
