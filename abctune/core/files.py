"""Files in and out. A writer never leaves half a file behind; a reader says which stage makes a missing one."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from abctune.core.errors import UserError, disk_full, is_disk_full

BATCH_ROWS = 1024  # rows in memory at a time while streaming
# No conversation is longer; fetch cuts a longer record to one character more, by which format knows it.
RECORD_CHARACTERS = 1_000_000
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # Linux's constants for renameat2


@contextmanager
def atomic_output(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; on success it becomes `path`, on failure it is removed.

    Works for a file and for a folder (which the block makes). Readers see the old one or the new one, and
    what they see is on the disk, so that it survives a power cut.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)
        if path.is_dir():
            _exchange(temporary, path)
            remove(temporary)
        else:
            temporary.replace(path)
        _sync_one(path.parent)
    except BaseException as error:
        remove(temporary, ignore_errors=True)
        if is_disk_full(error):
            raise disk_full(path) from error
        raise


def sync(path: Path) -> None:
    """Flush a file, or everything in a folder, to the disk."""
    for below in path.rglob("*"):
        _sync_one(below)
    _sync_one(path)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(new: Path, old: Path) -> None:
    """Exchange two paths, atomically where the system can (rename() cannot replace a folder)."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)  # Linux
    if renameat2 and renameat2(AT_FDCWD, bytes(new), AT_FDCWD, bytes(old), RENAME_EXCHANGE) == 0:
        return
    aside = new.with_name(f"{new.name}.tmp")
    old.rename(aside)
    new.rename(old)
    aside.rename(new)


def _remove_leftovers(path: Path) -> None:
    """Remove the temporary files that killed processes left for `path`, which would count as data in their folder.

    A writer that is atomic itself, given another's temporary path, has put a dot and a process id around that one's name;
    `_exchange` appends `.tmp` alone.
    """
    ours = re.compile(rf"\.+{re.escape(path.name)}\.(\d+)\.tmp(?:(?:\.\d+)?\.tmp)*")
    for leftover in path.parent.glob(".*.tmp"):
        found = ours.fullmatch(leftover.name)
        if found and (int(found[1]) == os.getpid() or not _is_alive(int(found[1]))):
            remove(leftover)


def _is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def remove(path: Path, ignore_errors: bool = False) -> None:
    """Remove a file, if it is there, or a folder with all that is in it."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=ignore_errors)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_output(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON; NaN and infinity are refused, since only Python's JSON reader accepts them."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, made_by: str) -> Any:
    """Read JSON that the DVC stage `made_by` writes."""
    with reading(path, made_by):
        return json.loads(path.read_text(encoding="utf-8"))


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object per line, atomically."""
    with atomic_output(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_jsonl(path: Path, made_by: str) -> list[dict[str, Any]]:
    """Read a file of one JSON object per line that the DVC stage `made_by` writes."""
    with reading(path, made_by):
        # Not splitlines(), which also parts at characters that stand unescaped in JSON's strings (U+2028, U+0085).
        lines = path.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines if line]


@contextmanager
def parquet_writer(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """A streaming writer whose file appears at `path` only when the block ends well."""
    with atomic_output(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        yield writer


def write_rows(path: Path, rows: Iterable[dict[str, Any]], schema: pa.Schema) -> int:
    """Stream row dictionaries into a Parquet file; return how many there were."""
    count, batch = 0, []
    with parquet_writer(path, schema) as writer:
        for row in rows:
            batch.append(row)
            if len(batch) == BATCH_ROWS:
                writer.write_table(pa.Table.from_pylist(batch, schema))
                count, batch = count + len(batch), []
        writer.write_table(pa.Table.from_pylist(batch, schema))
    return count + len(batch)


def read_batches(path: Path, made_by: str, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Stream a Parquet file that the DVC stage `made_by` writes, BATCH_ROWS rows at a time."""
    with reading(path, made_by), pq.ParquetFile(path) as file:
        yield from file.iter_batches(BATCH_ROWS, columns=columns)


def count_rows(path: Path, made_by: str) -> int:
    """How many rows a Parquet file has, by its footer."""
    with reading(path, made_by):
        return int(pq.read_metadata(path).num_rows)


def read_rows(path: Path, made_by: str, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Stream a Parquet file's rows as dictionaries."""
    for batch in read_batches(path, made_by, columns):
        yield from batch.to_pylist()


def read_table(path: Path, made_by: str, columns: list[str] | None = None) -> pa.Table:
    """Read a whole Parquet file (or some of its columns) into memory."""
    with reading(path, made_by):
        return pq.read_table(path, columns=columns)


@contextmanager
def reading(path: Path, made_by: str) -> Iterator[None]:
    """Say of a file that the DVC stage `made_by` writes that it is missing or damaged, and what brings it back."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(
            f"{path} not found; `dvc repro {made_by}` makes it, or `dvc pull` brings it from the remote"
        ) from None
    except PermissionError:  # nothing is wrong with what is in it
        raise
    except (ValueError, KeyError, OSError) as error:  # JSON's, Arrow's and pandas' errors are of these
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path} cannot be read ({detail}); delete it and run `dvc repro --force --single-item {made_by}`"
        ) from None
