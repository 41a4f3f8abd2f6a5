"""Records out of data files, one at a time: for the origins hub and local."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from abctune.core.errors import UserError
from abctune.core.files import RECORD_CHARACTERS
from abctune.core.schemas import NOT_UTF8, UNEVEN_ROW
from abctune.core.suffixes import SUFFIX_LIST, suffix_of
from stages.fetch.json_files import BROKEN, UNEVEN, Row, read_json, refuse_other_objects
from stages.fetch.tables import is_saved_dataset, read_arrow, read_csv, read_parquet, read_saved_dataset
from stages.fetch.text_files import OTHER_ENCODING, has_other_bytes, is_unicode, refuse_other_files

READERS = {
    ".jsonl": read_json,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}
OTHER_BYTES = "\udcff"  # follows what is left of bytes that are not UTF-8; it is no text either


class Record(NamedTuple):
    """A source's row: its JSON (or, for a line that is none, the line itself), and what it shares with others.

    A text of more than RECORD_CHARACTERS has been cut to one more.
    """

    text: str
    group: str | None
    problem: str | None = None  # NOT_UTF8: the text has U+FFFD where the file has other bytes; or UNEVEN_ROW


class DataFile(NamedTuple):
    """A file (or a folder of `datasets`) and what messages call it; the name's suffix says how to read it."""

    path: Path
    name: str
    split: str | None = None  # which is read, of a folder that holds several


def check_suffix(name: str, key: str) -> None:
    """Refuse a file that cannot be read, before it is downloaded.

    Raises:
        UserError: its name ends otherwise than a readable file's.
    """
    if suffix_of(name) is None:
        raise UserError(f"{key}: {name!r} must end in {SUFFIX_LIST} (text files also with .gz or .zst)")


def read_files(
    files: Iterable[DataFile], group_by: str | None = None, first_rows: int | None = None
) -> Iterator[Record]:
    """Stream the records of several files, one after the other; see `read_records`.

    Args:
        first_rows: stop after so many, and ask for no further file.

    Raises:
        UserError: as for `read_records`; no file has a value in `group_by`.
    """
    names, rows, grouped = [], 0, 0
    for path, name, split in files:
        names.append(name)
        left = None if first_rows is None else first_rows - rows
        for record in read_records(path, name, group_by, split, left):
            rows += 1
            grouped += record.group is not None
            yield record
        if rows == first_rows:
            break
    if rows and group_by and not grouped:
        raise UserError(
            f"{', '.join(names)}: no row has a value in {group_by!r}, which group_by in params.yaml names"
        )


def read_records(
    path: Path,
    name: str,
    group_by: str | None = None,
    split: str | None = None,
    first_rows: int | None = None,
) -> Iterator[Record]:
    """Stream a file's records.

    Args:
        path: where the file is, or a folder that `datasets` saved.
        name: what messages call it; its suffix says how to read it.
        group_by: the column whose value becomes the group; columns inside columns as `meta.user`.
        split: of a folder that `datasets` saved with several (stages.fetch.data_files chooses it).
        first_rows: stop after so many.

    Raises:
        UserError: the file cannot be read as what its suffix says, or none of its rows is an object.
    """
    rows = objects = not_utf8 = uneven = 0
    for value, line in islice(open_rows(path, name, split), first_rows):
        if not rows:
            refuse_other_objects(value, name)
        rows += 1
        record = record_of(value, line, group_by)
        objects += isinstance(value, dict)
        not_utf8 += has_other_bytes(line)
        uneven += value is UNEVEN
        yield record
    if rows and not_utf8 == rows:
        raise UserError(f"{name} {OTHER_ENCODING}")
    if rows and uneven == rows:
        raise UserError(
            f"{name}: none of its rows ({rows:,}) has a cell for each column that the first line names; is the first line"
            " missing, or a quote?"
        )
    if rows and not objects:
        raise UserError(
            f'{name}: none of its rows ({rows:,}) is a JSON object; each must be one, as {{"messages": [...]}}'
        )


def open_rows(path: Path, name: str, split: str | None) -> Iterator[Row]:
    """The rows of a file or of a saved dataset's folder, whatever its format."""
    if path.is_dir() and is_saved_dataset(path):
        return read_saved_dataset(path, name, split)
    refuse_other_files(path, name)
    return READERS[suffix_of(name) or ".jsonl"](path, name)


def record_of(value: Any, line: str, group_by: str | None) -> Record:
    """One row as a record: its JSON, or its line where it is none."""
    text, group = line, None
    if value is not BROKEN and value is not UNEVEN:
        try:
            text, group = dumped(value), group_of(value, group_by)
            if not is_unicode(text) and is_unicode(
                json.dumps(value, ensure_ascii=False, default=lambda _: None)
            ):
                # Bytes of a binary table, perhaps an image's: `format` refuses the row if it is to learn them.
                text = text.encode(errors="backslashreplace").decode()
        except RecursionError:  # what could be read may still be nested too deep to be written
            text = line
    problem = UNEVEN_ROW if value is UNEVEN else None
    if not (is_unicode(line) and is_unicode(text)):
        problem = NOT_UTF8
    return Record(well_formed(text)[: RECORD_CHARACTERS + 1], group, problem)


def group_of(value: Any, group_by: str | None) -> str | None:
    """A row's value in the column `group_by` as text; None where it has none."""
    if group_by is None or not isinstance(value, dict):
        return None
    found: Any = value
    if group_by in value:
        found = value[group_by]
    else:  # `meta.user`: the column `user` of the column `meta`
        for step in group_by.split("."):
            found = found.get(step) if isinstance(found, dict) else None
    if found is None:
        return None
    return well_formed(found) if isinstance(found, str) else serialise(found)


def serialise(value: Any) -> str:
    """One line of JSON that any reader accepts, the same for equal values.

    Infinities and NaN become null, dates their ISO form, and half a surrogate pair (which has no UTF-8) U+FFFD.
    """
    return well_formed(dumped(value))


def dumped(value: Any) -> str:
    """`serialise` but for halves of surrogate pairs, which stay."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_as_json)
    except ValueError:
        return json.dumps(_without_nan(value), ensure_ascii=False, allow_nan=False, default=_as_json)


def well_formed(text: str) -> str:
    """A text without halves of surrogate pairs, which JSON can spell and UTF-8 cannot."""
    return text if is_unicode(text) else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value


def _as_json(value: Any) -> Any:
    """Values that Parquet has and JSON lacks: bytes, dates, decimals."""
    if isinstance(value, bytes):
        return value.decode() if is_utf8(value) else value.decode(errors="replace") + OTHER_BYTES
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def is_utf8(value: bytes) -> bool:
    """Whether bytes are UTF-8 text."""
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def count_rows(records: Iterable[Record]) -> Iterator[dict[str, Any]]:
    """Records as rows of rows.parquet, numbered from 0."""
    for number, (text, group, problem) in enumerate(records):
        yield {"row": number, "record": text, "group": group, "problem": problem}
