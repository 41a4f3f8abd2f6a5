"""Rows of several files in a given order, with a part of them in memory at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from abctune.core.files import BATCH_ROWS, read_batches

ROWS = pa.schema(  # of data/mixed/<variant>.parquet
    {
        "source": pa.string(),
        "row": pa.int64(),
        "record": pa.string(),
        "group": pa.string(),
        "problem": pa.string(),  # what fetch found wrong with the row; null where nothing
    }
)
PART_BYTES = 64 << 20  # of rows in memory at a time; sorting takes about three times as much
PLACE = pa.field("place", pa.int64())
Places = npt.NDArray[np.int64]


class SourceRows(NamedTuple):
    """A source's file and, by row number, each row's place in the order (-1: not in it)."""

    name: str
    path: Path
    places: Places


def places(order: Sequence[tuple[str, int]]) -> dict[str, Places]:
    """Per source, each row's place in an order of (source, row) pairs; -1 for rows that are not in it."""
    size: dict[str, int] = {}
    for source, row in order:
        size[source] = max(size.get(source, 0), row + 1)
    found = {source: np.full(rows, -1, np.int64) for source, rows in size.items()}
    for place, (source, row) in enumerate(order):
        found[source][row] = place
    return found


def shuffled(sources: Sequence[SourceRows], scratch: Path) -> Iterator[pa.Table]:
    """The sources' rows in order, BATCH_ROWS in each table.

    The rows are first dealt to files, each for one stretch of the order, and then each file is sorted by itself.

    Args:
        sources: the files of `fetch`, with each row's place.
        scratch: a folder with room for the rows, uncompressed.

    Raises:
        UserError: a source's file is missing or damaged.
    """
    count = sum(int((source.places >= 0).sum()) for source in sources)
    stretch = rows_in_a_part(sources, count)
    with tempfile.TemporaryDirectory(prefix=".mix.", suffix=".tmp", dir=scratch) as folder:
        parts = [Path(folder) / str(number) for number in range(-(-count // stretch))]
        with ExitStack() as stack:
            writers = [
                stack.enter_context(pa.ipc.new_stream(str(part), ROWS.append(PLACE))) for part in parts
            ]
            for source in sources:
                for batch in placed(source):
                    deal(batch, writers, stretch)
        for part in parts:
            with pa.ipc.open_stream(str(part)) as reader:
                table = reader.read_all().sort_by("place").drop_columns("place")
            for start in range(0, len(table), BATCH_ROWS):
                yield table.slice(start, BATCH_ROWS).combine_chunks()


def rows_in_a_part(sources: Sequence[SourceRows], count: int) -> int:
    """How many rows about PART_BYTES hold: a multiple of BATCH_ROWS."""
    size = rows = 0
    for source in sources:
        with pq.ParquetFile(source.path) as file:
            rows += file.metadata.num_rows
            size += sum(
                file.metadata.row_group(group).total_byte_size for group in range(file.num_row_groups)
            )
    parts = -(-size * count // max(1, rows) // PART_BYTES)
    return BATCH_ROWS * max(1, -(-count // max(1, parts) // BATCH_ROWS))


def placed(source: SourceRows) -> Iterator[pa.RecordBatch]:
    """A source's rows that are in the order, with their place."""
    for batch in read_batches(source.path, f"fetch@{source.name}"):
        rows = batch["row"].to_numpy()
        place = np.full(len(rows), -1, np.int64)
        known = rows < len(source.places)
        place[known] = source.places[rows[known]]
        columns = {name: batch[name] for name in batch.schema.names}
        columns |= {"source": pa.array([source.name] * len(rows), pa.string()), "place": pa.array(place)}
        schema = ROWS.append(PLACE)
        arrays = [
            columns[name] if name in columns else pa.nulls(len(rows), schema.field(name).type)
            for name in schema.names
        ]
        yield pa.RecordBatch.from_arrays(arrays, schema=schema).filter(pa.array(place >= 0))


def deal(batch: pa.RecordBatch, writers: Sequence[pa.ipc.RecordBatchStreamWriter], stretch: int) -> None:
    """Write each row to the file of its stretch of the order."""
    part = batch["place"].to_numpy() // stretch
    for number in np.unique(part):
        writers[number].write_batch(batch.filter(pa.array(part == number)))
