"""Rows out of tables: Parquet, Arrow, CSV, and the folders that `datasets` saves. A batch in memory at a time."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from abctune.core.errors import UserError
from abctune.core.files import BATCH_ROWS, RECORD_CHARACTERS
from stages.fetch.json_files import UNEVEN, Row
from stages.fetch.text_files import open_text, refuse_tables

SEPARATORS = (",", ";", "\t")  # a spreadsheet writes `;` where the comma is the decimal point
SAVED = ("dataset_info.json", "dataset_dict.json")  # what a folder of `datasets` has


def read_parquet(path: Path, name: str) -> Iterator[Row]:
    """A Parquet file's rows.

    Raises:
        UserError: it is not Parquet, or damaged.
    """
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH_ROWS):
                yield from ((value, "") for value in batch.to_pylist())
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(name, "Parquet", error) from None


def read_arrow(path: Path, name: str) -> Iterator[Row]:
    """An Arrow file's rows, of the file format as well as of the stream that `datasets` writes.

    Raises:
        UserError: it is not Arrow, or damaged.
    """
    try:
        with pa.memory_map(str(path)) as file:
            is_file = file.read(6) == b"ARROW1"
            file.seek(0)
            if is_file:
                reader = pa.ipc.open_file(file)
                batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
            else:
                batches = iter(pa.ipc.open_stream(file))
            for batch in batches:
                for start in range(0, batch.num_rows, BATCH_ROWS):
                    yield from ((value, "") for value in batch.slice(start, BATCH_ROWS).to_pylist())
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(name, "Arrow", error) from None


def read_csv(path: Path, name: str) -> Iterator[Row]:
    """A CSV or TSV file's rows as objects of text; the first line names the columns.

    A row with more or fewer cells than there are columns is UNEVEN.

    Raises:
        UserError: the file has no line of column names, or a quote is never closed.
    """
    refuse_tables(path, name)
    csv.field_size_limit(RECORD_CHARACTERS + 1)
    with open_text(path, name) as text:
        header = text.readline()
        separator = "\t" if ".tsv" in Path(name.lower()).suffixes else max(SEPARATORS, key=header.count)
        begins = 1
        try:
            columns = next(csv.reader([header], delimiter=separator), [])
            if columns and len(set(columns)) < len(columns):
                raise UserError(f"{name}: two columns have the same name; the first line must name each once")
            # Strict, since a quote that is never closed would make one cell of all that follows.
            reader = csv.reader(text, delimiter=separator, strict=True)
            begins = 2
            for cells in reader:
                begins = reader.line_num + 2
                if len(cells) == len(columns):
                    yield dict(zip(columns, cells, strict=True)), ""
                elif cells:
                    yield UNEVEN, separator.join(cells)
        except csv.Error as error:
            raise UserError(
                f"{name} cannot be read as CSV: {error} in the row that begins at line {begins}; is a quote missing? One"
                ' inside a quoted cell is written twice, as ""'
            ) from None


def is_saved_dataset(folder: Path) -> bool:
    """Whether a folder is one that `datasets.save_to_disk` wrote."""
    return any((folder / name).is_file() for name in SAVED)


def read_saved_dataset(folder: Path, name: str, split: str | None, key: str) -> Iterator[Row]:
    """The rows of a folder that `datasets.save_to_disk` wrote.

    Args:
        split: which of a `DatasetDict`'s splits.
        key: where params.yaml describes the source, for messages.

    Raises:
        UserError: there is no such split, or several and none is named.
    """
    from datasets import DatasetDict, load_from_disk  # takes a second to import

    try:
        loaded = load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise _unreadable(name, "a saved dataset", error) from None
    if isinstance(loaded, DatasetDict):
        if split not in loaded:
            raise UserError(
                f"params.yaml: {key}.split: {name} has the splits {', '.join(loaded)}; name one of them"
            )
        loaded = loaded[split]
    elif split is not None:
        raise UserError(f"params.yaml: {key}.split: {name} holds one dataset without splits; remove the key")
    for table in loaded.with_format("arrow").iter(BATCH_ROWS):  # as stored: pictures are not decoded
        yield from ((value, "") for value in table.to_pylist())


def _unreadable(name: str, what: str, error: Exception) -> Exception:
    if isinstance(error, OSError) and error.errno is not None:
        return error  # the disk's trouble, not the file's
    detail = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(f"{name} cannot be read as {what}: {detail}")
