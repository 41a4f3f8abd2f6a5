"""Which files are which split of a data set, as `datasets.load_dataset` decides it from their names and the card."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

CARD = "README.md"  # names a data set's configs and their files, in its YAML


class NoSplits(Exception):
    """`datasets` knows no data files among these."""


def splits_of(
    names: Iterable[str], card: Path | None, scratch: Path, config: str | None = None
) -> dict[str, list[str]]:
    """The files of each split, in the order in which `datasets.load_dataset` would read them.

    `datasets` is shown a folder of empty files with these names, so that it neither downloads nor opens any.

    Args:
        names: of the data set's files, relative to its folder.
        card: the data set's README.md, if it has one.
        scratch: a folder that does not exist yet.

    Raises:
        NoSplits: none is a data file that `datasets` knows.
        ValueError: there is no such config, or there are several and none is named.
    """
    from datasets import load_dataset_builder  # takes a second to import
    from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError

    scratch.mkdir(parents=True)
    for name in names:
        (scratch / name).parent.mkdir(parents=True, exist_ok=True)
        (scratch / name).touch()
    if card is not None:
        (scratch / CARD).write_bytes(card.read_bytes())
    cache = scratch.with_name(f"{scratch.name}-cache")
    try:
        builder = load_dataset_builder(str(scratch), config, cache_dir=str(cache))
    except (DataFilesNotFoundError, DatasetNotFoundError, FileNotFoundError):
        raise NoSplits from None
    found = builder.config.data_files or {}
    return {
        str(split): [Path(path).relative_to(scratch.resolve()).as_posix() for path in paths]
        for split, paths in found.items()
    }
