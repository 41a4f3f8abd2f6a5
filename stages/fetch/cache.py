"""Verified downloads, kept outside the project: shared by all clones of a user, so that nothing is fetched twice.

The folder is $ABCTUNE_CACHE, else `abctune` in $HF_HOME, else in $XDG_CACHE_HOME, else ~/.cache/abctune. Deleting it is
always safe. An entry's name is its hash, which is checked before every use.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from abctune.core.files import write_json
from abctune.core.provenance import sha256_of

CHUNK = 1 << 20  # bytes


class Digest(NamedTuple):
    """A file's hash: SHA-256, or Git's blob id (SHA-1 over the size and the bytes), which is all a hub lists of small files."""

    kind: str  # "sha256" or "git"
    value: str  # hex

    def is_of(self, path: Path) -> bool:
        """Whether a file's bytes have this hash."""
        found = sha256_of(path) if self.kind == "sha256" else git_blob_id(path)
        return found == self.value


def cache_folder() -> Path:
    """Where verified downloads are kept."""
    if own := os.environ.get("ABCTUNE_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("HF_HOME") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(shared).expanduser() / "abctune"


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Wait until no other process downloads the entry `name`: two would write to one file."""
    folder = cache_folder() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / hashlib.sha256(name.encode()).hexdigest()):
        yield


def kept(digest: Digest) -> Path | None:
    """The entry with this hash, checked; None where there is none. A damaged one is removed."""
    entry = _entry(digest)
    if not entry.is_file():
        return None
    if digest.is_of(entry):
        return entry
    entry.unlink()
    return None


def keep(file: Path, digest: Digest) -> Path:
    """Move a file that has been checked into the cache; return its new path."""
    entry = _entry(digest)
    entry.parent.mkdir(parents=True, exist_ok=True)
    file.chmod(0o444)
    if file.stat().st_dev == entry.parent.stat().st_dev:
        return file.replace(entry)
    part = entry.with_suffix(f".{os.getpid()}.tmp")
    shutil.move(file, part)
    return part.replace(entry)


def partial(name: str) -> Path:
    """Where the download of the entry `name` is kept until it is complete."""
    folder = cache_folder() / "partial"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / hashlib.sha256(name.encode()).hexdigest()


def remembered(name: str) -> Any:
    """What `remember` wrote under this name; None where there is nothing that can be read."""
    try:
        return json.loads(_memory(name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def remember(name: str, value: Any) -> None:
    """Keep a small JSON value: what a server said about something that cannot change, as a commit's files."""
    write_json(_memory(name), value)


def _memory(name: str) -> Path:
    return cache_folder() / "listings" / f"{hashlib.sha256(name.encode()).hexdigest()}.json"


def _entry(digest: Digest) -> Path:
    return cache_folder() / digest.kind / digest.value[:2] / digest.value


def git_blob_id(path: Path) -> str:
    """What Git calls a file's contents."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
