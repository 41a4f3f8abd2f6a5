"""What training would make of a source's records, before anything runs: for tools/own.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from abctune.core.files import BATCH_ROWS
from abctune.core.params import SourceParams
from abctune.core.records import FormatRecord
from stages.format.formatter import Formatter
from stages.format.preview import PREVIEW_ROWS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Examination:
    """What training would make of a source's records."""

    record: FormatRecord
    preview: str
    roles: dict[str, int]  # turns per role, of the usable rows

    @property
    def usable(self) -> float:
        """Share of the rows that can be trained on."""
        counts = self.record.sources.values()
        return sum(one.kept + one.duplicate for one in counts) / max(1, sum(one.read for one in counts))


def examine(
    records: Iterable[tuple[str, str | None]],
    options: SourceParams,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    source: str = "own",
    rows: int = PREVIEW_ROWS,
) -> Examination:
    """Format a source's records without writing anything.

    Args:
        records: JSON objects as fetch stores them, each with what is wrong with the row's bytes, if anything is.
        options: the source's entry under `sources` in params.yaml.
        rows: how many to show, plain ones and of each kind of repair.
    """
    formatter = Formatter({source: options}, tokenizer, max_length, preview_rows=rows)
    roles: Counter[str] = Counter()
    numbered = enumerate(records)
    while batch := list(islice(numbered, BATCH_ROWS)):
        kept, _ = formatter.batch(
            [
                {"source": source, "row": row, "record": text, "group": None, "problem": problem}
                for row, (text, problem) in batch
            ]
        )
        roles.update(message["role"] for row in kept for message in row["messages"])
    record = formatter.record()
    return Examination(record, formatter.preview.text(record), dict(roles))
