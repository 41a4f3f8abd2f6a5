"""What a person looks at before and after training: rows with the supervised text marked, and what was repaired or refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from abctune.core.plural import counted
from abctune.core.records import FormatRecord, FormattedRows
from abctune.llm.conversation import IGNORE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from stages.format.render import Example

PREVIEW_ROWS = 3  # per source, and per kind of repair


class Preview:
    """The first rows of each source and of each kind of repair as text, supervised tokens between guillemets."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rows: int = PREVIEW_ROWS) -> None:
        self._tokenizer, self._rows = tokenizer, rows
        self._counts: Counter[tuple[str, str]] = Counter()
        self.shown: list[tuple[str, str]] = []  # a heading, and the example's text

    def add(self, source: str, identity: str, example: Example, repairs: Sequence[str] = ()) -> None:
        """Show an example, if enough of its like have not been shown yet."""
        kinds = [(source, kind) for kind in ("", *repairs)]
        if all(self._counts[kind] >= self._rows for kind in kinds):
            return
        self._counts.update(kinds)
        mended = f" ({'; '.join(repairs)})" if repairs else ""
        self.shown.append((f"{source} {identity}{mended}", mark_supervised(self._tokenizer, example)))

    def text(self, record: FormatRecord) -> str:
        """All of it, below what was counted."""
        head = "What the model is trained on. «Supervised tokens» stand between guillemets; all else is context.\n"
        blocks = [f"=== {heading}\n{text}\n" for heading, text in self.shown]
        counts = [line for source, found in record.sources.items() for line in lines(source, found)]
        return "\n".join([head, *counts, *([""] if counts else []), *blocks])


def lines(source: str, counts: FormattedRows) -> list[str]:
    """What was repaired and refused in a source, a line per kind."""
    mended = [f"{source}: {counted(count, 'row')} mended: {kind}" for kind, count in counts.repairs.items()]
    refused = [
        f"{source}: {counted(count, 'row')} refused: {reason}" for reason, count in counts.quarantined.items()
    ]
    return mended + refused


def mark_supervised(tokenizer: PreTrainedTokenizerBase, example: Example) -> str:
    """The example's text with each supervised run between « and »."""
    text, supervised = "", False
    run: list[int] = []  # of tokens that are all supervised, or all not
    ids, labels = (np.asarray(numbers).tolist() for numbers in (example.input_ids, example.labels))
    for token, label in [*zip(ids, labels, strict=True), (None, None)]:
        now = label is not None and label != IGNORE
        if run and (now != supervised or token is None):
            piece = tokenizer.decode(run, skip_special_tokens=False)
            text += f"«{piece}»" if supervised else piece
            run = []
        if token is not None:
            run.append(token)
        supervised = now
    return text
