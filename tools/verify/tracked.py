"""Every byte that DVC tracks, hashed again: in the workspace and in the cache.

DVC remembers hashes by size and time of change, and it checks out a damaged cache object without a word; after that
`dvc status` calls the output up to date. So nothing that DVC remembers is believed here.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abctune.core.errors import UserError
from abctune.core.provenance import dvc_listing_hash, md5

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo

DIRECTORY = ".dir"  # ends the hash of a folder: that of the sorted list of its files' hashes


@dataclass
class VerificationResult:
    """Faults, one line each, and how much was hashed to find them."""

    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # worth knowing, and no fault
    files: int = 0
    size: int = 0  # bytes hashed, the cache's included


def check_tracked() -> VerificationResult:
    """Hash all outputs of dvc.lock and of .dvc files; then ask DVC what is out of date.

    Raises:
        UserError: this is no DVC repository, or DVC cannot read it or is at work in it.
    """
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            hashes = Hashes()
            faults = {relative(out): faults_of(out, hashes) for out in repo.index.outs}
            found = [fault for of_one in faults.values() for fault in of_one]
            found += out_of_date(repo, {path for path, of_one in faults.items() if of_one})
    except (DvcException, LockError) as error:
        raise UserError(
            f"DVC: {error}; verify runs from the repository's root, while no other dvc runs"
        ) from None
    size = sum(size for _, size in hashes.known.values())
    return VerificationResult(found, files=len(hashes.known), size=size)


class Hashes:
    """MD5 and size in bytes of files, each read once even where workspace and cache are one file by a link."""

    def __init__(self) -> None:
        self.known: dict[tuple[int, int], tuple[str, int]] = {}  # by device and inode

    def of(self, paths: Iterable[Path]) -> dict[Path, str | None]:
        """MD5 by path, several files at a time; None for what is not there."""
        paths = list(dict.fromkeys(paths))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return dict(zip(paths, pool.map(self._one, paths), strict=True))

    def _one(self, path: Path) -> str | None:
        try:
            with path.open("rb") as file:
                about = os.fstat(file.fileno())
                key = (about.st_dev, about.st_ino)
                if key not in self.known:
                    digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
                    self.known[key] = (digest.hexdigest(), about.st_size)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return self.known[key][0]


def relative(out: Output) -> str:
    """An output's path relative to the working directory."""
    return Path(os.path.relpath(out.fs_path)).as_posix()


def faults_of(out: Output, hashes: Hashes) -> list[str]:
    """What is wrong with one output, a line per file."""
    stage, path, wanted = out.stage.addressing, relative(out), out.hash_info.value
    if not wanted:
        return [f"{path} has never been made; `dvc repro {stage}` makes it"]
    if not Path(path).exists():
        return [f"{path} is not there; {restored(out, good_copy=True)}"]
    if not wanted.endswith(DIRECTORY):
        return list(file_faults(out, {"": wanted}, hashes))
    listed = read_listing(out) if out.use_cache else None
    if listed is None:
        return list(folder_faults(out, hashes))
    return list(file_faults(out, listed, hashes))


def read_listing(out: Output) -> dict[str, str] | None:
    """MD5 by path inside the folder, from the cache's list of it; None where that is missing or damaged."""
    try:
        content = Path(out.cache.oid_to_path(out.hash_info.value)).read_bytes()
    except FileNotFoundError:
        return None
    if md5(content) + DIRECTORY != out.hash_info.value:
        return None
    return {entry["relpath"]: entry["md5"] for entry in json.loads(content)}


def file_faults(out: Output, listed: dict[str, str], hashes: Hashes) -> Iterator[str]:
    """Compare each file of an output, and each one's cache object, with what is listed.

    Args:
        listed: MD5 by path inside the output; the path is "" where the output is itself a file.
    """
    root = Path(relative(out))
    objects = (
        {name: Path(out.cache.oid_to_path(oid)) for name, oid in listed.items()} if out.use_cache else {}
    )
    found = hashes.of([*(root / name for name in listed), *objects.values()])
    for name, wanted in listed.items():
        path, cached = root / name, objects.get(name)
        good_copy = cached is None or found[cached] == wanted
        if found[path] != wanted:
            yield f"{path} {state(found[path])}; {restored(out, good_copy, there=found[path] is not None)}"
        if cached is not None and not good_copy:
            again = recached(out) if found[path] == wanted else restored(out, good_copy=False)
            yield f"{os.path.relpath(cached)}, the cache's copy of {path}, {state(found[cached])}; {again}"
    if root.is_dir():
        for extra in sorted(set(files_below(root)) - set(listed)):
            yield f"{root / extra} is in no list of dvc.lock; remove it"


def folder_faults(out: Output, hashes: Hashes) -> Iterator[str]:
    """Compare a folder as a whole: of what is not cached, or whose list is lost, DVC has one hash for all files."""
    root, names = Path(relative(out)), list(files_below(Path(relative(out))))
    found = hashes.of(root / name for name in names)
    same = dvc_listing_hash({name: found[root / name] for name in names}) == out.hash_info.value
    if not same:
        yield f"{root} {state('other')}; {restored(out, good_copy=not out.use_cache)}"
    if out.use_cache:
        cached = os.path.relpath(out.cache.oid_to_path(out.hash_info.value))
        again = recached(out) if same else restored(out, good_copy=False)
        yield f"{cached}, the cache's list of {root}, is missing or damaged; {again}"


def state(found: str | None) -> str:
    """What is wrong with a file, given the hash that was found (None: no file)."""
    return "is missing" if found is None else "is damaged or was changed (not the hash in dvc.lock)"


def restored(out: Output, good_copy: bool, there: bool = False) -> str:
    """The remedy for a wrong output. What DVC does not cache (plots, summary.json) is in Git.

    Args:
        good_copy: whether the cache's copy is right.
        there: whether the wrong file exists. It has to go first: DVC takes a file that has its usual size and time for right.
    """
    path, stage = relative(out), out.stage.addressing
    if not out.use_cache:
        return f"`git checkout {path}` or `dvc repro --force --single-item {stage}` brings it back"
    if good_copy:
        first = "delete it, then " if there else ""
        return f"{first}`dvc checkout --force {path}` or `dvc pull {path}` brings it back"
    return f"delete both, then `dvc pull --force {path}` or `dvc repro --force --single-item {stage}`"


def recached(out: Output) -> str:
    """The remedy for a wrong cache object whose workspace file is right."""
    return f"delete it if it is there, then `dvc commit --force {out.stage.addressing}` puts the workspace's copy there"


def files_below(root: Path) -> Iterator[str]:
    """Paths of all files in a folder and its subfolders, relative to it."""
    for folder, _, names in os.walk(root):
        for name in names:
            yield (Path(folder) / name).relative_to(root).as_posix()


def out_of_date(repo: Repo, named: set[str]) -> Iterator[str]:
    """Stages whose code, params or inputs are others than those that made the results; `named` are named already."""
    for stage, changes in repo.status().items():
        causes = [cause for change in changes for cause in changed(change)]
        if causes := [cause for cause in causes if not any(one.startswith(cause) for one in named)]:
            yield f"{stage} is out of date: {', '.join(causes)} changed since it ran; `dvc repro {stage}`"


def changed(change: str | dict[str, Any]) -> Iterator[str]:
    """The changed inputs in one entry of `dvc status`, params by their key; outputs are hashed here, not there."""
    if isinstance(change, str):
        yield change.removeprefix("changed ")
        return
    for path, what in change.get("changed deps", {}).items():
        if isinstance(what, dict):
            yield from what
        else:
            yield path
