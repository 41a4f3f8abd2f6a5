"""The formatter of the active profile, in this process and in those that share its work."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING

from abctune.core.files import BATCH_ROWS
from abctune.core.params import load_params
from abctune.llm.tokenizer import load_tokenizer
from stages.format.formatter import Formatter, Refused, Usable

if TYPE_CHECKING:
    import pyarrow as pa


# Rows that a process works on at a time: several such parts wait for one another, as Python objects.
PART_ROWS = 256


def without_torch() -> None:
    """Make transformers start without torch, which a tokenizer does not need: 2.4 s a run instead of 7."""
    sys.modules["torch"] = None  # type: ignore[assignment]
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # or it warns that torch was not found


@cache
def active_formatter() -> Formatter:
    """A formatter of the active profile's sources, tokenizer and length."""
    without_torch()
    params = load_params()
    tokenizer, max_length = load_tokenizer(**params.active.model.template), params.active.data.max_length
    groups = {name: getattr(origin, "group_by", None) for name, origin in params.active.sources.items()}
    return Formatter(params.sources, tokenizer, max_length, groups=groups)


def start_reading() -> Callable[[pa.RecordBatch], list[Usable | Refused]]:
    """Records of data/mixed -> rows to keep and records to refuse, before anything is compared or counted."""
    reader = active_formatter().reader

    def read(batch: pa.RecordBatch) -> list[Usable | Refused]:
        """One batch of records -> a usable row, packed, or a refusal for each."""
        found = reader.read(batch.to_pylist())
        return [one.packed() if isinstance(one, Usable) else one for one in found]

    return read


def in_parts(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Batches of BATCH_ROWS rows, the last one of fewer, as parts of PART_ROWS."""
    for batch in batches:
        for start in range(0, batch.num_rows, PART_ROWS):
            yield batch.slice(start, PART_ROWS)


def whole_batches(parts: Iterator[list[Usable | Refused]]) -> Iterator[list[Usable | Refused]]:
    """What was found in the parts, joined to what is in a batch: one row group is written for each."""
    while some := list(islice(parts, BATCH_ROWS // PART_ROWS)):
        yield [one for part in some for one in part]
