"""Which files of a person's own a source is made of: paths, globs, and folders, of which one split is read."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from abctune.core.errors import UserError
from abctune.core.suffixes import SUFFIX_LIST, SUFFIXES, suffix_of
from stages.fetch.records import DataFile, check_suffix
from stages.fetch.splits import CARD, NoSplits, splits_of
from stages.fetch.tables import is_saved_dataset, saved_splits

# What says something about the data in folders that `datasets` saved and in repositories of data sets.
NOT_ROWS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json")
# Files that say something about a folder or a file.
ABOUT = re.compile(r"^(readme|licen[cs]e|notice|copying|citation|changelog|authors)\b|\.dvc$", re.IGNORECASE)
NAMED = 10  # files in a line
TRAIN = "train"


class Found(NamedTuple):
    """What the paths of a source name."""

    files: list[DataFile]
    split: str | None  # which is read, where a folder holds several
    notes: list[str]  # a line for each folder of which more than is read is there
    left_out: list[str]  # a line for each folder with files of kinds that are not read


class Folder(NamedTuple):
    """A folder's data files, sorted; by split, if it has several; and those that belong to none of its splits."""

    files: list[DataFile]
    splits: dict[str, list[DataFile]]
    others: list[str]
    left_out: list[str]  # files of kinds that are not read


def data_files(paths: Iterable[str], key: str, split: str | None = None) -> Found:
    """The files that paths, globs and folders name, sorted within each; a folder of `datasets` counts as one.

    Of a folder with several splits, as `datasets.load_dataset` finds them, one is read: train, if no other is named.

    Args:
        key: what names the paths, for messages: `params.yaml: profiles.tiny.sources.own.path`.
        split: which of a folder's splits.

    Raises:
        UserError: a path matches nothing that can be read, or has no such split.
    """
    found: dict[Path, DataFile] = {}
    notes: list[str] = []
    left_out: list[str] = []
    paths, chosen = list(paths), None
    for path in (path for given in paths for path in matching(given, key)):
        if path.is_file():
            check_suffix(path.as_posix(), key)
            files = [DataFile(path, path.as_posix())]
        else:
            files, splits, others, unread = folder_of(path, key)
            left_out += [named(path, unread)] if unread else []
            if splits:
                chosen = split or (TRAIN if len(splits) > 1 else next(iter(splits)))
                if chosen not in splits:
                    raise UserError(
                        f"{key}: {path} has the splits {', '.join(splits)}; name one of them as `split`"
                        " (make own: ARGS='--split NAME')"
                    )
                files = [file._replace(split=chosen) for file in splits[chosen]]
            if left := [*(f"{name!r}" for name in splits if name != chosen), *others]:
                notes.append(f"{path}: the split {chosen!r} is read, and not {', '.join(left)}")
        found.update({file.path: file for file in files})
    if split and not chosen:
        raise UserError(f"{key}: {', '.join(paths)} has no splits; leave `split` out")
    return Found(list(found.values()), chosen, notes, left_out)


def matching(given: str, key: str) -> list[Path]:
    """The file or folder, or all of them, that a path or a glob names, sorted.

    Raises:
        UserError: there is none.
    """
    matches = [Path(given)] if Path(given).exists() else sorted(Path().glob(given))
    if not matches:
        raise UserError(
            f"{key}: {given} not found; put the file there, or correct the path. If it is there: experiments with --temp or"
            f" --queue have only the files that Git or DVC track; `dvc add {given}`, then `git add {given}.dvc`"
        )
    return matches


def folder_of(folder: Path, key: str) -> Folder:
    """What is in a folder; one that `datasets` saved is one file in all its splits.

    Raises:
        UserError: nothing that can be read, or the data of several configs.
    """
    if is_saved_dataset(folder):
        whole = DataFile(folder, folder.as_posix())
        return Folder([whole], {split: [whole] for split in saved_splits(folder)}, [], [])
    there = sorted(path for path in folder.rglob("*") if not _is_hidden(path.relative_to(folder)))
    paths = [path for path in there if suffix_of(path.name) and path.name not in NOT_ROWS]
    unread = [
        path.relative_to(folder).as_posix()
        for path in there
        if path.is_file() and not suffix_of(path.name) and not ABOUT.search(path.name)
    ]
    if not paths:
        raise UserError(f"{key}: no file in {folder} ends in {', '.join(SUFFIXES)}; put one there")
    files = [DataFile(path, path.as_posix()) for path in paths]
    by_split = splits_in(folder, paths, key)
    if len(by_split) < 2:  # nothing says that a part is held back
        return Folder(files, {}, [], unread)
    splits = {split: [file for file in files if file.path in some] for split, some in by_split.items()}
    used = set().union(*by_split.values())
    return Folder(files, splits, [path.name for path in paths if path not in used], unread)


def named(folder: Path, unread: Sequence[str]) -> str:
    """A line that names a folder's files that are not read, of very many some."""
    more = f" and {len(unread) - NAMED:,} more" if len(unread) > NAMED else ""
    return f"{folder}: {', '.join(unread[:NAMED])}{more} left out: no name that ends in {SUFFIX_LIST}"


def splits_in(folder: Path, paths: Sequence[Path], key: str) -> dict[str, set[Path]]:
    """The files of each split of a folder.

    Raises:
        UserError: the folder's card names several configs.
    """
    if len(paths) < 2:
        return {}
    card = folder / CARD if (folder / CARD).is_file() else None
    if card and not card.read_bytes().startswith(b"---"):  # a README without YAML says nothing about splits
        card = None
    # `datasets` reads files of one format; without a card it goes by their names, which then get one ending.
    names = {path.relative_to(folder).as_posix() + ("" if card else ".jsonl"): path for path in paths}
    try:
        with tempfile.TemporaryDirectory() as scratch:
            found = splits_of(names, card, Path(scratch) / "names")
    except NoSplits:
        return {}
    except ValueError as error:
        told = " ".join(str(error).split())
        raise UserError(
            f"{key}: {folder}: {told}; name files, or a glob of them, in place of the folder"
        ) from None
    return {split: {names[name] for name in some} for split, some in found.items()}


def _is_hidden(file: Path) -> bool:
    return any(part.startswith(".") for part in file.parts)
