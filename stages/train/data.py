"""The rows a variant trains on, and what of them the run will see."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from abctune.core.errors import UserError
from abctune.core.files import atomic_output, read_batches, reading
from abctune.core.params import TrainParams
from abctune.core.places import SPLIT
from abctune.core.records import Exposure
from stages.train.processes import process_state

if TYPE_CHECKING:  # it imports transformers, which Unsloth has to come before
    from datasets import Dataset

MAPPED = "checkpoints/{variant}/rows"
COLUMNS = ["source", "input_ids", "labels", "n_tokens", "n_supervised"]


def load_subset(variant: str, subset: str) -> pa.Table:
    """The variant's `train` or `val` rows, in training order, memory-mapped: one copy for all processes of a machine.

    Parquet cannot be mapped, so the rows are first written as an Arrow file, a batch at a time. `remove_rows` deletes it.
    """
    source = SPLIT / variant / f"{subset}.parquet"
    made_by = f"split@{variant}"
    with reading(source, made_by):
        schema = pq.read_schema(source)
        rows = pa.schema([schema.field(name) for name in COLUMNS if name in schema.names])
        known = source.stat()
    mapped = MAPPED.format(variant=variant)
    path = Path(mapped) / f"{subset}-{known.st_size}-{known.st_mtime_ns}.arrow"
    with process_state().local_main_process_first():
        if not path.exists():
            with atomic_output(path) as temporary, pa.ipc.new_file(str(temporary), rows) as writer:
                for batch in read_batches(source, made_by, COLUMNS):
                    writer.write_batch(batch)
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    if not table.num_rows:
        raise UserError(f"{source} has no rows; run `dvc repro split@{variant}`")
    return table


def remove_rows(variant: str) -> None:
    """Delete the files that `load_subset` has mapped."""
    shutil.rmtree(MAPPED.format(variant=variant), ignore_errors=True)


def as_dataset(table: pa.Table, order: np.ndarray | None = None) -> Dataset:
    """The Trainer's view of the rows: token ids and labels, nothing left to prepare.

    The fingerprint names files in a cache that nothing here uses. Without one, `Dataset` makes it by hashing every row:
    4 s for the 100,000 rows of profile full's A, for each replicate.

    Args:
        order: the rows' numbers in another order than the table's, which is not copied.
    """
    from datasets import Dataset

    rows = Dataset(table.select(["input_ids", "labels"]), fingerprint="rows")
    return rows if order is None else rows.select(order, new_fingerprint="ordered")


def exposure(table: pa.Table, recipe: TrainParams, order: np.ndarray | None = None) -> Exposure:
    """Conversations and tokens per source that the run sees.

    Args:
        table: the rows in training order; the run begins again at the first after the last.
        order: the rows' numbers in the order in which they are trained on, where that is another one.
        recipe: with its steps known. The last step of an epoch takes the rows that are left.
    """
    per_step, rows_in_all = recipe.conversations_per_step, table.num_rows
    whole, rest = divmod(recipe.steps, math.ceil(rows_in_all / per_step))
    seen = whole * rows_in_all + min(rest * per_step, rows_in_all)
    times = np.full(rows_in_all, seen // rows_in_all)  # that each row is seen at least
    times[slice(seen % rows_in_all) if order is None else order[: seen % rows_in_all]] += 1
    names = pc.dictionary_encode(table["source"].combine_chunks())
    owner, sources = names.indices.to_numpy(), names.dictionary.to_pylist()

    def summed(values: np.ndarray) -> dict[str, int]:
        """Sums of `values` (rows,) by source, of the sources that the run sees."""
        sums = np.bincount(owner, values, minlength=len(sources)).astype(int)
        shown = np.bincount(owner, times, minlength=len(sources)) > 0
        return dict(
            sorted(
                (source, int(total)) for source, total, any_ in zip(sources, sums, shown, strict=True) if any_
            )
        )

    return Exposure(
        conversations=summed(times),
        tokens=summed(times * table["n_tokens"].to_numpy()),
        supervised_tokens=summed(times * table["n_supervised"].to_numpy()),
        epochs=round(seen / rows_in_all, 4),
    )
