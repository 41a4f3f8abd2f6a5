"""Rows out of tables: Parquet, Arrow, CSV, and the folders that `datasets` saves. A batch in memory at a time."""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from abctune.core.errors import UserError
from abctune.core.files import BATCH_ROWS, RECORD_CHARACTERS
from stages.fetch.json_files import UNEVEN, Row
from stages.fetch.text_files import OTHER_ENCODING, has_other_bytes, open_text, refuse_tables

SEPARATORS = (",", ";", "\t", "|")  # a spreadsheet writes `;` where the comma is the decimal point
QUOTED = re.compile(r'"[^"]*("|$)')
TOLD_SEPARATOR = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)  # Excel's first line
SPLITS = "dataset_dict.json"
SAVED = ("dataset_info.json", SPLITS)  # what a folder of `datasets` has


def read_parquet(path: Path, name: str) -> Iterator[Row]:
    """A Parquet file's rows.

    Raises:
        UserError: it is not Parquet, or damaged.
    """
    try:
        with pq.ParquetFile(path) as file:
            refuse_same_names(file.schema_arrow, name)
            for batch in file.iter_batches(BATCH_ROWS):
                yield from ((value, "") for value in batch.to_pylist())
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
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
                refuse_same_names(reader.schema, name)
                batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
            else:
                batches = pa.ipc.open_stream(file)
                refuse_same_names(batches.schema, name)
            for batch in batches:
                for start in range(0, batch.num_rows, BATCH_ROWS):
                    yield from ((value, "") for value in batch.slice(start, BATCH_ROWS).to_pylist())
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _unreadable(name, "Arrow", error) from None


def read_csv(path: Path, name: str) -> Iterator[Row]:
    """A CSV or TSV file's rows as objects of text; the first line names the columns.

    A row with more or fewer cells than there are columns is UNEVEN. A column without a name is called as pandas calls it.

    Raises:
        UserError: the file has no line of column names, is JSON, or a quote is never closed.
    """
    refuse_tables(path, name)
    csv.field_size_limit(RECORD_CHARACTERS + 1)
    with open_text(path, name) as text:
        lines = iter(lambda: text.readline(RECORD_CHARACTERS + 1), "")
        skipped, header = next(((n, line) for n, line in enumerate(lines) if line.strip()), (0, ""))
        if header.lstrip().startswith(("{", "[")):
            raise UserError(f"{name} is JSON, not a table; name it .jsonl")
        if "\r" in header.rstrip("\r\n"):
            raise UserError(f"{name} has the line ends of old Macs (CR); save it with LF or CRLF")
        separator = "\t" if ".tsv" in Path(name.lower()).suffixes else separator_of(header)
        if told := TOLD_SEPARATOR.fullmatch(header):
            skipped, separator, header = skipped + 1, told[1], text.readline()
        begins = skipped + 1
        # Strict, since a quote that is never closed would make one cell of all that follows.
        reader = csv.reader(itertools.chain([header], text), delimiter=separator, strict=True)
        try:
            columns = columns_of(next(reader, []), name)
            begins = skipped + reader.line_num + 1
            for cells in reader:
                begins = skipped + reader.line_num + 1
                if cells:
                    whole = len(cells) == len(columns)
                    yield dict(zip(columns, cells, strict=True)) if whole else UNEVEN, separator.join(cells)
        except csv.Error as error:
            raise UserError(
                f"{name} cannot be read as CSV: {error} in the row that begins at line {begins}; is a quote missing? One"
                ' inside a quoted cell is written twice, as ""'
            ) from None


def separator_of(header: str) -> str:
    """What stands most often between a table's column names, which may hold others between quotes."""
    return max(SEPARATORS, key=QUOTED.sub("", header).count)


def columns_of(cells: list[str], name: str) -> list[str]:
    """The names of a table's columns.

    Raises:
        UserError: two have the same, or one is not UTF-8.
    """
    if has_other_bytes("".join(cells)):
        raise UserError(f"{name} {OTHER_ENCODING}")
    columns = [cell.strip() or f"Unnamed: {number}" for number, cell in enumerate(cells)]
    if twice := repeated(columns):
        raise UserError(
            f"{name}: two columns have the same name ({twice}); the first line must name each once"
        )
    return columns


def refuse_same_names(columns: pa.Schema | pa.StructType, name: str) -> None:
    """Refuse a binary table with two columns of the same name, of which a row would keep one.

    Raises:
        UserError: naming it.
    """
    if twice := repeated(column.name for column in columns):
        raise UserError(
            f"{name}: two columns have the same name ({twice}); write the file again with a name for each"
        )
    for column in columns:
        kind = column.type
        while pa.types.is_nested(kind) and not pa.types.is_struct(kind):  # a list's items, a map's values
            kind = kind.field(kind.num_fields - 1).type
        if pa.types.is_struct(kind):
            refuse_same_names(kind, name)


def repeated(names: Iterable[str]) -> str | None:
    """The first of the names that comes again."""
    return next((name for name, times in Counter(names).items() if times > 1), None)


def saved_splits(folder: Path) -> list[str]:
    """The splits of a folder that `datasets.save_to_disk` wrote; none where it holds one dataset without splits."""
    try:
        splits = json.loads((folder / SPLITS).read_text(encoding="utf-8"))["splits"]
        return [split for split in splits if isinstance(split, str)]
    except (OSError, ValueError, KeyError, TypeError):  # of a damaged one reading tells
        return []


def is_saved_dataset(folder: Path) -> bool:
    """Whether a folder is one that `datasets.save_to_disk` wrote."""
    return any((folder / name).is_file() for name in SAVED)


def read_saved_dataset(folder: Path, name: str, split: str | None) -> Iterator[Row]:
    """The rows of a folder that `datasets.save_to_disk` wrote.

    Args:
        split: which of a `DatasetDict`'s splits, one of `saved_splits`; None of a dataset without splits.

    Raises:
        UserError: it is damaged.
    """
    from datasets import DatasetDict, load_from_disk  # takes a second to import

    try:
        loaded = load_from_disk(str(folder))
        rows = loaded[split] if isinstance(loaded, DatasetDict) else loaded
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise _unreadable(name, "a saved dataset", error) from None
    for table in rows.with_format("arrow").iter(BATCH_ROWS):  # as stored: pictures are not decoded
        yield from ((value, "") for value in table.to_pylist())


def _unreadable(name: str, what: str, error: Exception) -> Exception:
    if isinstance(error, OSError) and error.errno is not None:
        return error  # the disk's trouble, not the file's
    if isinstance(error, UnicodeDecodeError):
        return UserError(
            f"{name} has a column of text that is not UTF-8; write it again with all text as UTF-8"
        )
    detail = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(f"{name} cannot be read as {what}: {detail}")
