"""Records out of .jsonl, .json and .parquet files, one at a time: for the origins hub and local."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from abctune.core.errors import UserError
from abctune.core.files import BATCH_ROWS, RECORD_CHARACTERS

SUFFIXES = (".jsonl", ".json", ".parquet")
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
# A character has at most 4 bytes, so what is left of a line that is cut here is still too long.
LINE_BYTES = 4 * (RECORD_CHARACTERS + 1)
BROKEN = object()  # the value of a line that is no JSON; the line is kept for `format` to count and show


class Record(NamedTuple):
    """A source's row: its JSON (or, for a line that is none, the line itself), and what it shares with others.

    A text of more than RECORD_CHARACTERS has been cut to one more.
    """

    text: str
    group: str | None


def check_suffix(name: str, key: str) -> None:
    """Refuse a file that cannot be read, before it is downloaded.

    Raises:
        UserError: its name ends otherwise than a readable file's.
    """
    if not name.endswith(SUFFIXES):
        raise UserError(
            f"params.yaml: {key}: {name!r} must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        )


def read_records(path: Path, name: str, group_by: str | None = None) -> Iterator[Record]:
    """Stream a file's records.

    Args:
        path: where the file is.
        name: what messages call it; its suffix says how to read it.
        group_by: the column whose value becomes the group.

    Raises:
        UserError: the file cannot be read as what its suffix says, or has no column `group_by`.
    """
    values = read_parquet(path, name) if name.endswith(".parquet") else read_json(path, name)
    grouped = 0
    objects = 0
    rows = 0
    for value, line in values:
        rows += 1
        text, group = line, None
        if value is not BROKEN:
            with suppress(RecursionError):  # what could be read may still be nested too deep to be written
                text, group = serialise(value), group_of(value, group_by)
        objects += isinstance(value, dict)
        grouped += group is not None
        yield Record(text[: RECORD_CHARACTERS + 1], group)
    if rows and not objects:
        raise UserError(
            f'{name}: none of its {rows:,} rows is a JSON object; each row must be one, as {{"messages": [...]}}'
        )
    if rows and group_by and not grouped:
        raise UserError(f"{name}: no row has a value in {group_by!r}, which group_by in params.yaml names")


def read_json(path: Path, name: str) -> Iterator[tuple[Any, str]]:
    """The values of a JSON list, or of JSON lines: some hubs' .json files are the latter."""
    with path.open("rb") as file:
        start = file.read(4096)
    if start.startswith(UTF16_MARKS):
        raise UserError(f"{name} is UTF-16 text; save it as UTF-8")
    is_list = start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    return read_json_list(path, name) if name.endswith(".json") and is_list else read_json_lines(path)


def read_json_list(path: Path, name: str) -> Iterator[tuple[Any, str]]:
    try:
        for value in json.loads(path.read_text(encoding="utf-8-sig", errors="replace")):
            yield value, ""
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} cannot be read as a JSON list: {error}") from None


def read_json_lines(path: Path) -> Iterator[tuple[Any, str]]:
    """Each line's value (BROKEN if it is not JSON) and its text."""
    with path.open("rb") as file:
        for number, line in enumerate(lines(file)):
            # A byte that is not UTF-8 becomes U+FFFD, by which `format` knows the row.
            text = line.decode("utf-8-sig" if number == 0 else "utf-8", errors="replace").strip()
            if not text:
                continue
            try:
                value = json.loads(text)
            except (ValueError, RecursionError):  # ValueError: also a number of thousands of digits
                value = BROKEN
            yield value, text


def lines(file: BinaryIO) -> Iterator[bytes]:
    """The file's lines, each cut at LINE_BYTES: one endless line must not fill the memory."""
    while line := file.readline(LINE_BYTES):
        yield line
        while len(line) == LINE_BYTES and not line.endswith(b"\n"):
            line = file.readline(LINE_BYTES)


def read_parquet(path: Path, name: str) -> Iterator[tuple[dict[str, Any], str]]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH_ROWS):
                for value in batch.to_pylist():
                    yield value, ""
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's trouble, not the file's
        raise UserError(f"{name} cannot be read as Parquet: {str(error).splitlines()[0]}") from None


def group_of(value: Any, group_by: str | None) -> str | None:
    if group_by is None or not isinstance(value, dict) or value.get(group_by) is None:
        return None
    group = value[group_by]
    return well_formed(group) if isinstance(group, str) else serialise(group)


def serialise(value: Any) -> str:
    """One line of JSON that any reader takes, the same for equal values.

    Infinities and NaN become null, dates their ISO form, and half a surrogate pair (which has no UTF-8) U+FFFD.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_as_json)
    except ValueError:
        text = json.dumps(_without_nan(value), ensure_ascii=False, allow_nan=False, default=_as_json)
    return well_formed(text)


def well_formed(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value


def _as_json(value: Any) -> Any:
    """What Parquet has and JSON has not: bytes, dates, decimals."""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def count_rows(records: Iterable[Record]) -> Iterator[dict[str, Any]]:
    """Records as rows of rows.parquet, numbered from 0."""
    for number, (text, group) in enumerate(records):
        yield {"row": number, "record": text, "group": group}
