"""People's votes as the report reads them; `python -m tools.votes` writes them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from abctune.core.records import Record, TrainingRecord, read_records
from abctune.study.places import DATA

VOTES = DATA / "votes" / "votes.jsonl"


class VoteRecord(Record):
    """A line of data/votes/votes.jsonl: one blind vote, without prompt and answers."""

    id: str  # from the vote's whole content, so that a vote is added once
    shown: tuple[str, ...]
    preferred: str | None  # None: a tie
    trained: dict[str, str]  # by variant: `training_id` of the adapter that answered


def training_id(record: TrainingRecord) -> str:
    """Identifies one training of a variant: times and losses are in its record, so no other has the same."""
    return hashlib.sha256(record.model_dump_json().encode()).hexdigest()[:16]


def read_votes(path: Path = VOTES) -> list[VoteRecord]:
    """The votes that were added to the project; none where there is no such file.

    Raises:
        UserError: a line is no vote.
    """
    return read_records(path, VoteRecord, "plot") if path.exists() else []
