"""Origin `local`: a user's own data file or model folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from abctune.core.errors import UserError
from abctune.core.params import LocalModel, LocalSource
from abctune.core.provenance import sha256_of
from stages.fetch.model_files import INDEX, needed_files
from stages.fetch.records import SUFFIXES, DataFile, Record, check_suffix, read_files, suffix_of
from stages.fetch.tables import is_saved_dataset

NOT_ROWS = ("dataset_infos.json",)  # what a repository of a data set says about its files


def source(origin: LocalSource, key: str) -> tuple[Iterator[Record], dict[str, Any]]:
    """The records of the user's files, and what `source.json` says about them.

    Raises:
        UserError: a file is missing, empty, unreadable, or no row has the column that `group_by` names.
    """
    found = data_files(origin.paths, f"params.yaml: {key}.path")
    records = read_files(found, origin.group_by, origin.split, key)
    shown = ", ".join(origin.paths)
    return records, {"path": shown, "files": hashes(found)}


def data_files(paths: Iterable[str], key: str) -> list[DataFile]:
    """The files that paths, globs and folders name, sorted within each; a folder of `datasets` counts as one.

    Args:
        key: what names the paths, for messages: `params.yaml: profiles.tiny.sources.own.path`.

    Raises:
        UserError: one of them matches nothing that can be read.
    """
    found: dict[Path, DataFile] = {}
    for given in paths:
        path = Path(given)
        if path.is_dir() and not is_saved_dataset(path):
            matches = sorted(
                file
                for file in path.rglob("*")
                if suffix_of(file.name) and not _is_hidden(file) and file.name not in NOT_ROWS
            )
        elif path.exists():
            matches = [path]
        else:
            matches = sorted(Path().glob(given))
        if not matches:
            if path.is_dir():
                raise UserError(f"{key}: no file in {given} ends in {', '.join(SUFFIXES)}; put one there")
            raise UserError(f"{key}: {given} not found; put the file there, or correct the path")
        for match in matches:
            if match.is_file():
                check_suffix(match.as_posix(), key)
            found[match] = DataFile(match, match.as_posix())
    return list(found.values())


def _is_hidden(file: Path) -> bool:
    return any(part.startswith(".") for part in file.parts)


def hashes(files: Iterable[DataFile]) -> dict[str, dict[str, Any]]:
    """SHA-256 and size in bytes of each file, those inside a folder included; by name below data/own/."""
    inside = (
        file
        for path, _ in files
        for file in (sorted(path.rglob("*")) if path.is_dir() else [path])
        if file.is_file()
    )
    return {"/".join(file.parts[2:]): hash_of(file) for file in inside}


def hash_of(file: Path) -> dict[str, Any]:
    """SHA-256 and size in bytes of a file."""
    return {"sha256": sha256_of(file), "bytes": file.stat().st_size}


def model(origin: LocalModel, key: str, folder: Path) -> dict[str, Any]:
    """Copy what `from_pretrained` needs into `folder`; return what `source.json` says about it.

    Raises:
        UserError: the folder is missing, or has no safetensors, config or tokenizer.
    """
    files = {}
    for path in model_files(origin, key):
        shutil.copyfile(path, folder / path.name)
        files[path.name] = hash_of(folder / path.name)
    return {"path": origin.path, "files": files}


def model_files(origin: LocalModel, key: str) -> list[Path]:
    """The files of a model folder that `from_pretrained` needs, sorted.

    Raises:
        UserError: the folder is missing, or has no safetensors, config or tokenizer.
    """
    path = Path(origin.path)
    if not path.is_dir():
        raise UserError(f"params.yaml: {key}.path: folder {origin.path} not found; correct the path")
    names = (entry.name for entry in path.iterdir() if entry.is_file())
    index = path / INDEX if (path / INDEX).is_file() else None
    return [path / name for name in needed_files(names, origin.path, f"{key}.path", index)]
