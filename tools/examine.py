"""What training would make of a source's records, before anything runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from abctune.core.files import BATCH_ROWS
from abctune.core.params import SourceParams
from abctune.core.records import FormatRecord
from abctune.llm.conversation import conversation_of
from stages.format.formatter import Formatter
from stages.format.preview import PREVIEW_ROWS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


MAX_LABELS, LABEL_CHARACTERS = 30, 40  # more or longer replies than these are answers, not labels

Record = tuple[str, str | None, str | None]  # text, group, problem


@dataclass(frozen=True)
class Examination:
    """What training would make of a source's records."""

    record: FormatRecord
    preview: str
    roles: dict[str, int]  # turns per role, of the usable rows
    groups: int  # of the usable rows: those of a group stay on one side of the split
    replies: dict[str, int]  # rows by their last reply, where these are few and short: labels; else none
    calls: int  # rows with a reply that calls tools
    formatter: Formatter  # what has read the rows

    @property
    def usable(self) -> float:
        """Share of the rows that can be trained on."""
        counts = self.record.sources.values()
        return sum(one.kept + one.duplicate for one in counts) / max(1, sum(one.read for one in counts))


def examine(
    records: Iterable[Record],
    options: SourceParams,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    source: str = "own",
    group_by: str | None = None,
    rows: int = PREVIEW_ROWS,
) -> Examination:
    """Format a source's records without writing anything.

    Args:
        records: JSON objects as fetch stores them, each with its group if it has one, and with what is wrong with the row's
            bytes, if anything is.
        options: the source's entry under `sources` in params.yaml.
        group_by: the column that the groups are from.
        rows: how many to show, plain ones and of each kind of repair.
    """
    formatter = Formatter({source: options}, tokenizer, max_length, rows, {source: group_by})
    roles: Counter[str] = Counter()
    groups: set[str] = set()
    replies: Counter[str] = Counter()
    calls = 0
    numbered = enumerate(records)
    while batch := list(islice(numbered, BATCH_ROWS)):
        kept, _ = formatter.batch(
            [
                {"source": source, "row": row, "record": text, "group": group, "problem": problem}
                for row, (text, group, problem) in batch
            ]
        )
        for row in kept:
            roles.update(message["role"] for message in row["messages"])
            groups.add(row["group"])
            messages, last = conversation_of(row)[0], row["messages"][-1]
            calls += any("tool_calls" in message for message in messages)
            if len(replies) <= MAX_LABELS:
                replies[last["content"].strip() if last["role"] == "assistant" else ""] += 1
    record, labels = formatter.record(), {} if len(replies) > MAX_LABELS else dict(replies)
    if not labels or max(map(len, labels)) > LABEL_CHARACTERS or "" in labels:
        labels = {}
    return Examination(
        record, formatter.preview.text(record), dict(roles), len(groups), labels, calls, formatter
    )
