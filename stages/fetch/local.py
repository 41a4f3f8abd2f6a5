"""Origin `local`: a user's own data file or model folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from abctune.core.errors import UserError
from abctune.core.params import LocalModel, LocalSource
from abctune.core.provenance import sha256_of
from stages.fetch.model_files import needed_files
from stages.fetch.records import Record, read_records


def source(origin: LocalSource, key: str) -> tuple[Iterator[Record], dict[str, Any]]:
    """The file's records, and what `source.json` says about them.

    Raises:
        UserError: the file is missing, empty, unreadable, or without the column that `group_by` names.
    """
    path = Path(origin.path)
    if not path.is_file():
        raise UserError(
            f"params.yaml: {key}.path: {origin.path} not found; put the file there, or correct the path"
        )
    files = {path.name: {"sha256": sha256_of(path), "bytes": path.stat().st_size}}
    return read_records(path, origin.path, origin.group_by), {"path": origin.path, "files": files}


def model(origin: LocalModel, key: str, folder: Path) -> dict[str, Any]:
    """Copy what `from_pretrained` needs into `folder`; return what `source.json` says about it.

    Raises:
        UserError: the folder is missing, or has no safetensors, config or tokenizer.
    """
    path = Path(origin.path).expanduser()
    if not path.is_dir():
        raise UserError(f"params.yaml: {key}.path: folder {origin.path} not found; correct the path")
    names = needed_files(
        (entry.name for entry in path.iterdir() if entry.is_file()), origin.path, f"{key}.path"
    )
    for name in names:
        shutil.copyfile(path / name, folder / name)
    files = {
        name: {"sha256": sha256_of(folder / name), "bytes": (folder / name).stat().st_size} for name in names
    }
    return {"path": origin.path, "files": files}
