"""Text out of a data file: compression and encoding are found by the file's first bytes, whatever its name."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from abctune.core.errors import UserError

HEAD_BYTES = 4096  # enough to know a file by its beginning
COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
# What a file is that holds no rows this project reads, by its first bytes, and what to do about it.
OTHER_FILES = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; `git lfs pull` brings the file",
    b"PK\x03\x04": "a zip archive (or an office document); unpack it, or export it as CSV",
    b"BZh": "bzip2 data; unpack it (`bunzip2`)",
    b"\xfd7zXZ": "xz data; unpack it (`unxz`)",
    b"%PDF": "a PDF, from which no rows can be read",
    b"\x80\x04": "a Python pickle, which is refused because loading one runs code; save it as .jsonl or .parquet",
    b"SQLite format 3": "an SQLite database; export the table as CSV",
    b"\xff\xfe\x00\x00": "UTF-32 text; save it as UTF-8",
    b"\x00\x00\xfe\xff": "UTF-32 text; save it as UTF-8",
}
TABLES = {b"PAR1": ".parquet", b"ARROW1": ".arrow"}
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
OTHER_ENCODING = "is not UTF-8 text (Windows-1252 or Latin-1?); save it as UTF-8: `iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW`"
OTHER_BYTE = re.compile("[\udc80-\udcff]")


def refuse_other_files(path: Path, name: str) -> None:
    """Refuse a file that holds no rows, naming what it is.

    Raises:
        UserError: it is a web page, a Git LFS pointer, an archive or the like.
    """
    start = head(path)
    for mark, what in OTHER_FILES.items():
        if start.startswith(mark):
            raise UserError(f"{name} is {what}")
    page = start.removeprefix(b"\xef\xbb\xbf").lstrip()[:200].lower()
    if page.startswith((b"<!doctype html", b"<html")):
        raise UserError(
            f"{name} is a web page (HTML), not data: the download brought a login or error page; download it again,"
            " signed in, by the link to the file itself"
        )
    if page.startswith(b"<?xml"):
        raise UserError(f"{name} is XML, which is not read; convert it to .jsonl")


def refuse_tables(path: Path, name: str) -> None:
    """Refuse a binary table under a text file's name.

    Raises:
        UserError: the file is Parquet or Arrow.
    """
    for mark, suffix in TABLES.items():
        if head(path).startswith(mark):
            raise UserError(f"{name} is a {suffix[1:].title()} file; name it {suffix}")


def head(path: Path) -> bytes:
    """The file's first bytes as stored on disk."""
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


@contextmanager
def open_text(path: Path, name: str) -> Iterator[io.TextIOWrapper]:
    r"""Open a file as text: gzip and zstd are unpacked; UTF-8 with or without a mark, UTF-16 with one.

    Lines end at \n alone. Bytes that are not UTF-8 become lone surrogates (`surrogateescape`), by which `has_other_bytes` knows them.

    Raises:
        UserError: the compressed data are damaged, or the text is UTF-16 without a mark.
    """
    compression = next((name for mark, name in COMPRESSIONS.items() if head(path).startswith(mark)), None)
    try:
        with pa.input_stream(path, compression=compression) as stream:
            start = stream.read(HEAD_BYTES)
        encoding, errors = _encoding(start, name)
        with pa.input_stream(path, compression=compression, buffer_size=1 << 16) as stream:
            yield io.TextIOWrapper(stream, encoding=encoding, errors=errors, newline="\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is damaged UTF-16 text ({error.reason}); save it again as UTF-8") from None
    except (pa.ArrowException, OSError) as error:
        if compression is None or (isinstance(error, OSError) and error.errno):
            raise  # the disk's trouble, not the file's
        raise UserError(
            f"{name} is damaged or cut short ({compression}: {str(error).splitlines()[0]}); download it again"
        ) from None


def _encoding(start: bytes, name: str) -> tuple[str, str]:
    if start.startswith(UTF16_MARKS):
        return "utf-16", "strict"
    if max(start[half:200:2].count(0) for half in (0, 1)) > 0.4 * len(
        start[:200]
    ):  # ASCII has every second byte 0
        raise UserError(f"{name} is UTF-16 text without a byte order mark; save it as UTF-8")
    return "utf-8-sig", "surrogateescape"


def has_other_bytes(text: str) -> bool:
    """Whether a text that `open_text` read holds bytes that are not UTF-8."""
    return not is_unicode(text) and OTHER_BYTE.search(text) is not None


def is_unicode(text: str) -> bool:
    """Whether a text has a UTF-8 form: halves of surrogate pairs, which JSON can spell, have none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
