"""What a writer leaves behind when it fails, and what a reader says."""

import errno
import os
import re
import subprocess
import sys
import threading
import time

import pyarrow as pa
import pytest

from abctune.core.errors import UserError
from abctune.core.files import (
    atomic_output,
    read_json,
    read_jsonl,
    read_table,
    write_json,
    write_jsonl,
    write_rows,
)

SCHEMA = pa.schema({"n": pa.int64()})


def fails_after(count, error):
    yield from ({"n": n} for n in range(count))
    raise error


def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path):
    write_rows(tmp_path / "rows.parquet", [{"n": 1}], SCHEMA)
    with pytest.raises(ZeroDivisionError):
        write_rows(tmp_path / "rows.parquet", fails_after(3000, ZeroDivisionError()), SCHEMA)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.parquet"]
    assert read_table(tmp_path / "rows.parquet", "mix@A").to_pylist() == [{"n": 1}]


def test_a_failing_folder_leaves_the_old_folder_and_nothing_else(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old").write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_output(tmp_path / "out") as folder:
        folder.mkdir()
        (folder / "new").write_text("new")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "old"]


def test_readers_never_find_a_folder_missing_while_it_is_replaced(tmp_path):
    path, gaps, done = tmp_path / "out", [], threading.Event()

    def write(number):
        with atomic_output(path) as folder:
            folder.mkdir()
            (folder / "number").write_text(str(number))

    def read():
        while not done.is_set():
            if not path.is_dir():
                gaps.append(time.monotonic())

    write(0)
    reader = threading.Thread(target=read)
    reader.start()
    for number in range(200):
        write(number)
    done.set()
    reader.join()
    assert not gaps
    assert (path / "number").read_text() == "199" and list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_a_folder_is_replaced_where_the_system_has_no_exchange(tmp_path, monkeypatch):
    monkeypatch.setattr("abctune.core.files.RENAME_EXCHANGE", -1)  # an unknown flag: EINVAL, as on NFS
    for text in ("old", "new"):
        with atomic_output(tmp_path / "out") as folder:
            folder.mkdir()
            (folder / "file").write_text(text)
    assert (tmp_path / "out/file").read_text() == "new" and list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    unburied = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, unburied.pid, os.WEXITED | os.WNOWAIT)  # dead, and its parent does not care
    left = [tmp_path / f".out.json.{pid}.tmp" for pid in (killed.pid, unburied.pid, os.getpid())]
    left.append(
        tmp_path / f"..out.json.{killed.pid}.tmp.{killed.pid}.tmp"
    )  # of an atomic writer in another's file
    left.append(tmp_path / f".out.json.{killed.pid}.tmp.tmp")  # of an exchange of folders
    others = [
        tmp_path / name
        for name in (
            f".out.json.{os.getppid()}.tmp",
            f"..out.json.{os.getppid()}.tmp.{killed.pid}.tmp",
            f".other.json.{killed.pid}.tmp",
            f".1.out.json.{killed.pid}.tmp",
        )
    ]
    for file in (*left, *others):
        file.touch()
    write_json(tmp_path / "out.json", {})
    assert not any(file.exists() for file in left) and all(file.exists() for file in others)


def test_a_full_disk_is_one_line_that_names_the_file_and_the_remedy(tmp_path):
    path = tmp_path / "rows.parquet"
    with pytest.raises(UserError, match=f"while writing {re.escape(str(path))}; free some"):
        write_rows(path, fails_after(3000, OSError(errno.ENOSPC, "No space left on device")), SCHEMA)
    assert not list(tmp_path.iterdir())


def test_a_missing_or_damaged_file_names_the_stage_that_makes_it(tmp_path):
    with pytest.raises(UserError, match=r"metrics\.json not found; `dvc repro eval@B` makes it"):
        read_json(tmp_path / "metrics.json", "eval@B")
    (tmp_path / "metrics.json").write_text('{"loss": ')
    with pytest.raises(
        UserError, match=r"metrics\.json cannot be read .* `dvc repro --force --single-item eval@B`"
    ):
        read_json(tmp_path / "metrics.json", "eval@B")


def test_no_json_file_holds_a_number_that_other_readers_refuse(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "metrics.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_line_separator_in_an_answer_parts_no_line(tmp_path):
    rows = [{"answer": "one\u2028two\u0085three\x0cfour"}, {"answer": "five\nsix"}]
    write_jsonl(tmp_path / "tasks.jsonl", rows)
    assert read_jsonl(tmp_path / "tasks.jsonl", "eval-base") == rows
