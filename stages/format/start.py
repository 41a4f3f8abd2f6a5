"""The formatter of the active profile, in this process and in those that share its work."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from abctune.core.params import load_params
from abctune.llm.tokenizer import load_tokenizer
from stages.format.formatter import Formatter, Refused, Usable

if TYPE_CHECKING:
    import pyarrow as pa


def without_torch() -> None:
    """Make transformers start without torch, which a tokenizer does not need: 2.4 s a run instead of 7."""
    sys.modules["torch"] = None  # type: ignore[assignment]
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # or it warns that torch was not found


@cache
def active_formatter() -> Formatter:
    """A formatter of the active profile's sources, tokenizer and length; group_by's columns count as read."""
    without_torch()
    params = load_params()
    sources = {}
    for name, options in params.sources.items():
        group_by = getattr(params.active.sources[name], "group_by", None)
        read = (group_by.split(".")[0],) if group_by else ()
        sources[name] = options.model_copy(update={"ignore": options.ignore + read})
    return Formatter(sources, load_tokenizer(**params.active.model.template), params.active.data.max_length)


def start_reading() -> Callable[[pa.RecordBatch], list[Usable | Refused]]:
    """Records of data/mixed -> rows to keep and records to refuse, before anything is compared or counted."""
    reader = active_formatter().reader

    def read(batch: pa.RecordBatch) -> list[Usable | Refused]:
        found = reader.read(batch.to_pylist())
        return [one.packed() if isinstance(one, Usable) else one for one in found]

    return read
