"""Which files of a dataset repository a source of params.yaml means: names and globs, or a config's split."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from abctune.core.errors import UserError
from abctune.core.params import HubSource
from abctune.core.suffixes import suffix_of
from stages.fetch.splits import NoSplits, splits_of

NAMED = 5  # files that a message lists


def named_files(origin: HubSource, listed: Iterable[str], key: str) -> list[str]:
    """The files that `files` names, in its order; those of a glob by name.

    Raises:
        UserError: a name or a glob fits no file of the repository.
    """
    names = sorted(listed)
    found: dict[str, None] = {}
    for given in origin.files:
        matches = [given] if given in names else [name for name in names if fnmatchcase(name, given)]
        if not matches:
            raise UserError(
                f"params.yaml: {key}.files: {origin.repo} has no {given!r} at revision {origin.revision};"
                f" name some of {in_words([name for name in names if suffix_of(name)])}"
            )
        found.update(dict.fromkeys(matches))
    return list(found)


def in_words(names: list[str]) -> str:
    """The data files that a repository has, as many as a line can name."""
    if not names:
        return "another repository's files, since it has none in a format that can be read"
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return f"its data files: {', '.join(names[:NAMED])}{more}"


def split_files(
    origin: HubSource, listed: Iterable[str], card: Path | None, scratch: Path, key: str
) -> list[str]:
    """The files of `split`, in the order in which `datasets.load_dataset` would read them.

    Args:
        card: the repository's README.md, if it has one.
        scratch: a folder that does not exist yet.

    Raises:
        UserError: there is no such config or split, or the repository's data need its own code.
    """
    try:
        found = splits_of(listed, card, scratch, origin.config)
    except NoSplits:
        raise UserError(
            f"params.yaml: {key}.repo: {origin.repo} has no data files that `datasets` knows (its own loading code is"
            " never run); name them under `files`"
        ) from None
    except ValueError as error:
        raise UserError(f"params.yaml: {key}.config: {_one_line(error)}") from None
    if origin.split not in found:
        raise UserError(
            f"params.yaml: {key}.split: {origin.repo} has the splits {', '.join(found)}; name one of them"
        )
    return found[origin.split]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
