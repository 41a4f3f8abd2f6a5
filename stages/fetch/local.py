"""Origin `local`: a user's own data file or model folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from abctune.core.errors import UserError
from abctune.core.params import LocalModel, LocalSource
from abctune.core.provenance import hash_of
from stages.fetch.data_files import data_files
from stages.fetch.model_files import INDEX, needed_files, require_usable
from stages.fetch.records import DataFile, Record, read_files


def source(origin: LocalSource, key: str) -> tuple[Iterator[Record], dict[str, Any]]:
    """The records of the user's files, and what `source.json` says about them.

    Raises:
        UserError: a file is missing, empty, unreadable, there is no such split, or no row has the column that `group_by`
            names.
    """
    found = data_files(origin.paths, f"params.yaml: {key}.path", origin.split)
    for note in found.notes:
        print(f"{note}. Another one: {key}.split in params.yaml")
    for line in found.left_out:
        print(line)
    records = read_files(found.files, origin.group_by)
    about = {"path": ", ".join(origin.paths)} | ({"split": found.split} if found.split else {})
    return records, {**about, "files": hashes(found.files)}


def hashes(files: Iterable[DataFile]) -> dict[str, dict[str, Any]]:
    """SHA-256 and size in bytes of each file, those inside a folder included; by name below data/own/."""
    inside = (
        file
        for path, *_ in files
        for file in (sorted(path.rglob("*")) if path.is_dir() else [path])
        if file.is_file()
    )
    return {"/".join(file.parts[2:]): hash_of(file) for file in inside}


def model(origin: LocalModel, key: str, folder: Path) -> dict[str, Any]:
    """Copy what `from_pretrained` needs into `folder`; return what `source.json` says about it.

    Raises:
        UserError: as model_files.
    """
    files = {}
    for path in model_files(origin, key):
        name = path.relative_to(origin.path).as_posix()
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, folder / name)
        files[name] = hash_of(folder / name)
    return {"path": origin.path, "files": files}


def model_files(origin: LocalModel, key: str) -> list[Path]:
    """The files of a model folder that `from_pretrained` needs, sorted.

    Raises:
        UserError: the folder is missing, as needed_files, or as require_usable.
    """
    path = Path(origin.path)
    if not path.is_dir():
        raise UserError(f"params.yaml: {key}.path: folder {origin.path} not found; correct the path")
    names = (entry.relative_to(path).as_posix() for entry in path.rglob("*") if entry.is_file())
    index = path / INDEX if (path / INDEX).is_file() else None
    needed = needed_files(names, origin.path, f"{key}.path", index)
    require_usable(path, origin.path, f"{key}.path")
    return [path / name for name in needed]
