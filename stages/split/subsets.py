"""A variant's rows, each written to its subset and counted."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from abctune.core.files import parquet_writer, read_batches
from abctune.core.params import SplitParams
from stages.split.buckets import SUBSETS, Subset, subset_of
from stages.split.contamination import HeldOut

COLUMNS = ["id", "group", "source", "messages", "n_tokens", "n_supervised"]


class Assigner:
    """Assigns rows to subsets and counts, per source, what went where."""

    def __init__(self, split: SplitParams, held_out: HeldOut) -> None:
        self._split, self._held_out = split, held_out
        self._counts: dict[str, Counter[str]] = {}
        self.refused: list[
            dict[str, Any]
        ] = []  # id, source and reason of the training rows that were dropped
        self.groups: Counter[tuple[str, str]] = Counter()  # rows by (source, group)

    def subset(self, row: dict[str, Any]) -> Subset | None:
        """The row's subset, or None for a training row that is too near to a held-out one."""
        counts = self._counts.setdefault(row["source"], Counter())
        self.groups[row["source"], row["group"]] += 1
        subset = subset_of(row["group"], self._split)
        if subset == "train" and (reason := self._held_out.near(row)):
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


def write_subsets(rows: Path, made_by: str, folder: Path, assigner: Assigner) -> None:
    """Stream a variant's rows into train.parquet, val.parquet and test.parquet, in their order."""
    schema = pq.read_schema(rows)
    with ExitStack() as stack:
        writers = {
            subset: stack.enter_context(parquet_writer(folder / f"{subset}.parquet", schema))
            for subset in SUBSETS
        }
        for batch in read_batches(rows, made_by):
            found = [assigner.subset(row) for row in batch.select(COLUMNS).to_pylist()]
            for subset, writer in writers.items():
                writer.write_batch(batch.filter(pa.array([one == subset for one in found])))
