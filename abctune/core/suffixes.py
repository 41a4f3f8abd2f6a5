"""The names of data files that can be read: what params.yaml may name, and what fetch reads."""

from __future__ import annotations

from pathlib import PurePosixPath

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
ALSO = {".ndjson": ".jsonl", ".jsonlines": ".jsonl"}  # other names of the same
PACKED = (".gz", ".zst")  # after the suffix of a text file
SUFFIX_LIST = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"  # in sentences
# Ends of names that people give to fetch and that it cannot read. A folder may have any other dot in its name.
UNREADABLE = (
    ".txt", ".md", ".rst", ".html", ".htm", ".xml", ".yaml", ".yml", ".toml", ".pdf", ".doc", ".docx", ".odt",
    ".xls", ".xlsx", ".ods", ".pkl", ".pickle", ".npz", ".sqlite", ".db", ".zip", ".tar", ".tgz", ".7z", ".py",
)  # fmt: skip


def suffix_of(name: str) -> str | None:
    """The suffix by which a file is read, without that of its compression; None if it is none of SUFFIXES."""
    last = _last_suffix(name)
    last = ALSO.get(last, last)
    return last if last in SUFFIXES else None


def is_unreadable(name: str) -> bool:
    """Whether a name is that of a file of another kind, by its end."""
    return _last_suffix(name) in UNREADABLE


def _last_suffix(name: str) -> str:
    suffixes = [suffix for suffix in PurePosixPath(name.lower()).suffixes if suffix not in PACKED]
    return suffixes[-1] if suffixes else ""
