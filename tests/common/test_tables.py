"""What a writer leaves behind when it fails, and what a reader says."""

import errno
import re

import pyarrow as pa
import pytest

from stages.common.errors import UserError
from stages.common.tables import read_json, read_table, replacing, write_json, write_rows

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
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "out") as folder:
        folder.mkdir()
        (folder / "new").write_text("new")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "old"]


def test_a_full_disk_is_one_line_that_names_the_file_and_the_remedy(tmp_path):
    path = tmp_path / "rows.parquet"
    with pytest.raises(UserError, match=f"while writing {re.escape(str(path))}; free some"):
        write_rows(path, fails_after(3000, OSError(errno.ENOSPC, "No space left on device")), SCHEMA)
    assert not list(tmp_path.iterdir())


def test_a_missing_or_damaged_file_names_the_stage_that_makes_it(tmp_path):
    with pytest.raises(UserError, match=r"metrics\.json not found; `dvc repro eval@B` makes it"):
        read_json(tmp_path / "metrics.json", "eval@B")
    (tmp_path / "metrics.json").write_text('{"loss": ')
    with pytest.raises(UserError, match=r"metrics\.json cannot be read .* `dvc repro --force eval@B`"):
        read_json(tmp_path / "metrics.json", "eval@B")


def test_no_json_file_holds_a_number_that_other_readers_refuse(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "metrics.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())
