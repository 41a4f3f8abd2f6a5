"""Records of the pipeline that the chat can do without: None where a file is missing or was written by another version."""

from __future__ import annotations

from pathlib import Path

from abctune.core.errors import UserError
from abctune.core.files import read_json
from abctune.core.records import AnyRecord, StudyRecord, SummaryRecord, read_record

SUMMARY, STUDY = Path("metrics/summary.json"), Path("metrics/study.json")


def optional_record(path: Path, record: type[AnyRecord]) -> AnyRecord | None:
    """The record in a file; None if it is missing or was written by another version."""
    try:
        return read_record(path, record, made_by="")
    except (OSError, UserError):
        return None


def summary_of(root: Path) -> SummaryRecord | None:
    """metrics/summary.json of a study; None if it is missing or was written by another version."""
    try:
        return SummaryRecord.from_json(read_json(root / SUMMARY, made_by="plot"))
    except (OSError, UserError, ValueError, AttributeError):
        return None


def study_of(root: Path) -> StudyRecord | None:
    """metrics/study.json of a study; None if it is missing or was written by another version."""
    return optional_record(root / STUDY, StudyRecord)
