"""The names of data files that can be read: what params.yaml may name, and what fetch reads."""

from __future__ import annotations

from pathlib import PurePosixPath

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
ALSO = {".ndjson": ".jsonl", ".jsonlines": ".jsonl"}  # other names of the same
PACKED = (".gz", ".zst")  # after the suffix of a text file


def suffix_of(name: str) -> str | None:
    """The suffix by which a file is read, without that of its compression; None if it is none of SUFFIXES."""
    suffixes = [suffix for suffix in PurePosixPath(name.lower()).suffixes if suffix not in PACKED]
    last = ALSO.get(suffixes[-1], suffixes[-1]) if suffixes else None
    return last if last in SUFFIXES else None
