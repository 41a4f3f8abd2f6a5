"""The disk fills up while a stage writes: it exits not 0 and names the path, and what was there before is intact."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.finished import make_finished
from tests.workspace import Workspace

MIB = 2**20
# stage, its key, the paths that it writes
WRITERS = (
    ("fetch", "chat", ("data/raw/chat",)),
    ("fetch", "--model", ("models/base",)),
    ("mix", "A", ("data/mixed/A.parquet", "data/mixed/A.json")),
    ("format", "A", ("data/formatted/A",)),
    ("split", "A", ("data/split/A", "data/split/A.json")),
)
NAMES = [f"{stage} {key}" for stage, key, _ in WRITERS]
# A process whose n-th write of a file fails for want of space; it exits with 77 if there were fewer.
INJECTED = """
import errno, os, pathlib, runpy, shutil, sys
import pandas, pyarrow.parquet, safetensors

left = int(sys.argv[1])
def failing(write):
    def wrapped(*arguments, **named):
        global left
        left -= 1
        if left == -1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(*arguments, **named)
    return wrapped

for owner, name in (
    (pathlib.Path, "write_text"), (pyarrow.parquet.ParquetWriter, "write_table"),
    (pandas.DataFrame, "to_csv"), (shutil, "copyfile"),
):
    setattr(owner, name, failing(getattr(owner, name)))
sys.argv = sys.argv[2:]
try:
    runpy.run_module(f"stages.{sys.argv[0]}", run_name="__main__", alter_sys=True)
except SystemExit as ended:
    if ended.code:
        raise
if left >= 0:
    sys.exit(77)
"""


def contents(root: Path) -> dict[str, str]:
    """The hash of every output, by path; half-written files would be here too."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for room in ("data", "models", "metrics", "plots")
        for path in sorted((root / room).rglob("*"))
        if path.is_file()
    }


def says_so(stderr: str, paths: tuple[str, ...]) -> bool:
    """Whether the last line is the one a person needs: no space, and where."""
    line = stderr.strip().splitlines()[-1]
    names = any(path in line or f"{Path(path).parent}/.{Path(path).name}." in line for path in paths)
    return line.startswith("error: no space left on the disk while writing ") and names


def test_every_write_may_find_the_disk_full(split_once: Path, tmp_path: Path) -> None:
    shutil.copytree(split_once, tmp_path, dirs_exist_ok=True)
    check_each_write(Workspace(tmp_path), WRITERS[2:4], at_most=2)


@pytest.mark.faults
def test_every_write_of_every_stage_may_find_the_disk_full(
    split_once: Path, tmp_path: Path, small_model: Path
) -> None:
    shutil.copytree(split_once, tmp_path / "split")
    cases = check_each_write(Workspace(tmp_path / "split"), WRITERS)
    finished = make_finished(tmp_path / "finished", small_model)
    cases += check_each_write(finished, (("plot", None, ("plots", "metrics/summary.json")),))
    print(
        f"\ndisk full, injected: {cases} of {cases} writes named the path and left all outputs as they were"
    )


def check_each_write(
    project: Workspace, writers: tuple[tuple[str, str | None, tuple[str, ...]], ...], at_most: int = 100
) -> int:
    """Fail each write of each stage in turn; how many there were."""
    cases = 0
    for stage, key, paths in writers:
        before = contents(project.root)
        change_outputs(project)
        for number in range(at_most):
            command = ("python", "-c", INJECTED, str(number), stage, *([key] if key else []))
            done = project.run(*command, check=False)
            if done.returncode == 77:
                assert contents(project.root) != before
                break
            assert done.returncode == 1, (stage, number, done.stderr)
            assert says_so(done.stderr, paths), (stage, number, done.stderr)
            assert contents(project.root) == before, (stage, number)
            cases += 1
        assert number, f"{stage} wrote nothing"
    return cases


def change_outputs(project: Workspace) -> None:
    """Have every stage write something else than before."""
    params = project.params()
    tiny = params["profiles"]["tiny"]
    tiny["model"]["license"] = tiny["sources"]["chat"]["license"] = f"license {params['seed']}"
    tiny["data"]["max_length"] -= 1
    tiny["split"]["val"] += 0.01
    project.set(seed=params["seed"] + 1, profiles__tiny=tiny)


# --- a disk that is really full ------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a tmpfs of so many bytes."""
    mounted: list[Path] = []

    def mount(size: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
        if sys.platform != "linux" or subprocess.run(command, capture_output=True).returncode:
            pytest.skip(
                "a tmpfs can be mounted by root on Linux alone; the injected faults are tested anywhere"
            )
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


def fill(disk: Path, leaving: int) -> None:
    """Fill the disk up to so many bytes."""
    filler = disk / "filler"
    filler.unlink(missing_ok=True)
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    with filler.open("wb") as file:
        file.write(bytes(max(0, free - leaving)))


def check_full_disk(disk: Path, stage: str, key: str | None, paths: tuple[str, ...]) -> None:
    project = Workspace(disk)
    before = contents(disk)
    change_outputs(project)
    fill(disk, leaving=4096)
    done = project.stage(stage, *([key] if key else []), check=False, PYTHONDONTWRITEBYTECODE="1")
    assert done.returncode == 1, done.stdout + done.stderr
    assert says_so(done.stderr, paths), done.stderr
    assert contents(disk) == before
    (disk / "filler").unlink()
    project.stage(stage, *([key] if key else []))  # with space again, it works
    assert contents(disk) != before


@pytest.mark.faults
def test_a_full_disk_leaves_what_was_there(
    small_disk: Callable[[int], Path], split_once: Path, small_model: Path, tmp_path: Path
) -> None:
    disk = small_disk(64 * MIB)
    shutil.copytree(split_once, disk, dirs_exist_ok=True)
    for stage, key, paths in WRITERS:
        check_full_disk(disk, stage, key, paths)
    finished = make_finished(tmp_path / "finished", small_model)
    disk = small_disk(64 * MIB)
    shutil.copytree(finished.root, disk, dirs_exist_ok=True)
    check_full_disk(disk, "plot", None, ("plots", "metrics/summary.json"))
    print(
        f"\ndisk full, a tmpfs: {', '.join(NAMES)}, plot each named the path and left all outputs as they were"
    )
