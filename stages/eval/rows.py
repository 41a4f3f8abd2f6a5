"""What every model is scored on: the common test rows, and general text that no variant trained on."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from json import JSONDecodeError, loads
from typing import TYPE_CHECKING

import pyarrow as pa

from abctune.core.errors import UserError
from abctune.core.files import read_rows, read_table
from abctune.core.params import Params
from abctune.core.places import GENERAL_TEXT, SPLIT
from abctune.core.records import GENERAL
from abctune.llm.chat import prefix, text_ids
from abctune.llm.conversation import IGNORE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GENERAL_ROWS = GENERAL_TEXT / "rows.parquet"
COLUMNS = ("id", "group", "source", "input_ids", "labels", "n_supervised")
HEADING = re.compile(r" ?= [^=].* = *\n?")  # of an article, as WikiText writes it; = = sections = = are none
MIN_TOKENS = 16  # of a window: the end of a document that is shorter says little


def test_rows(params: Params) -> pa.Table:
    """The common test rows: those of the reference mix, the same for every model. COLUMNS, `messages` and `extra`."""
    reference = params.evaluation.test_of
    path = SPLIT / reference / "test.parquet"
    rows = read_table(path, f"split@{reference}", [*COLUMNS, "messages", "extra"])
    if not rows.num_rows:
        raise UserError(
            f"{path} has no rows; give profiles.{params.profile}.split.test a larger share in params.yaml"
        )
    return rows


def general_rows(params: Params, tokenizer: PreTrainedTokenizerBase) -> pa.Table:
    """Windows of general text with COLUMNS; a document is a group. No rows where the profile asks for none.

    The first window of every group comes before the second of any, since what a group's windows say is not
    independent.
    """
    settings, schema = params.active.eval, _schema()
    if not settings.general_windows:
        return schema.empty_table()
    of_group: Counter[str] = Counter()
    found: list[tuple[int, str, list[int]]] = []
    for group, text in documents(read_rows(GENERAL_ROWS, "fetch-general", ["record", "group"])):
        for ids in windows(text, tokenizer, settings.general_tokens):
            found.append((of_group[group], group, ids))
            of_group[group] += 1
    # By the hash of the group, so that the order of the file chooses nothing.
    found.sort(key=lambda window: (window[0], _digest(window[1]), window[1]))
    if not found:
        raise UserError(
            f"params.yaml: profiles.{params.profile}.general: no text of at least {MIN_TOKENS} tokens in it"
        )
    rows = [_row(*window, tokenizer) for window in found[: settings.general_windows]]
    return pa.Table.from_pylist(rows, schema)


def _schema() -> pa.Schema:
    ids = pa.list_(pa.int32())
    kinds = (pa.string(), pa.string(), pa.string(), ids, ids, pa.int32())
    return pa.schema(list(zip(COLUMNS, kinds, strict=True)))


def _row(index: int, group: str, ids: list[int], tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
    start = prefix(tokenizer)
    labels = [IGNORE] * len(start) + ids
    return {
        "id": _digest(f"{group} {index} {ids}"),
        "group": f"{GENERAL}-{group}",
        "source": GENERAL,
        "input_ids": start + ids,
        "labels": labels,
        "n_supervised": sum(label != IGNORE for label in labels[1:]),  # nothing predicts a row's first token
    }


def windows(text: str, tokenizer: PreTrainedTokenizerBase, size: int) -> Iterator[list[int]]:
    """A document's token ids in pieces of `size`, each scored alone; control tokens in it stay plain text."""
    ids = text_ids(tokenizer, text)
    for start in range(0, len(ids), size):
        if len(window := ids[start : start + size]) >= MIN_TOKENS:
            yield window


def documents(rows: Iterable[dict[str, str | None]]) -> Iterator[tuple[str, str]]:
    """(group, text) of each document: a row, or where rows are the lines of articles, an article.

    Raises:
        UserError: a row has no `text`.
    """
    lines = [(_text(row["record"] or ""), row["group"]) for row in rows]
    articles = any(HEADING.fullmatch(text) for text, _ in lines)
    number = 0
    parts: list[str] = []
    for at, (text, group) in enumerate(lines):
        if not articles:
            yield group or str(at), text
            continue
        if HEADING.fullmatch(text) and parts:
            yield str(number), "".join(parts)
            number, parts = number + 1, []
        parts.append(text)
    if parts:
        yield str(number), "".join(parts)


def _text(record: str) -> str:
    try:
        text = loads(record)["text"]
    except (JSONDecodeError, TypeError, KeyError):
        text = None
    if not isinstance(text, str):
        raise UserError(
            f"{GENERAL_ROWS}: {record[:60]!r} has no `text`; general text is rows of one string each, "
            'as {"text": "..."} (profiles.*.general in params.yaml)'
        )
    return text


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
