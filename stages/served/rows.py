"""Test rows as rendered by a program that has only the exported file: through the chat template inside it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from abctune.core.errors import UserError
from abctune.core.schemas import SERVED
from abctune.llm.chat import Encoder, TemplateError, Unrenderable, reply_pieces, segments
from abctune.llm.conversation import IGNORE, conversation_of
from abctune.llm.likelihood import conversation_nll
from abctune.llm.stops import Stops

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Parts = list[
    tuple[int | None, list[int]]
]  # (number of the message, if a reply; token ids) of each piece of text


class Template:
    """A tokenizer's chat template, with what is made of it once for all rows."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer, self._encoder = tokenizer, Encoder(tokenizer)
        self.stops = Stops(tokenizer)

    def parts_of(self, row: Mapping[str, Any]) -> Parts:
        """A row's text, piece by piece, as token ids.

        Raises:
            TemplateError: the template prints a reply in another way than after its own generation prompt.
            Unrenderable: the template fails on this conversation, or ends a reply with no stop.
        """
        messages, tools, marks = self._encoder.mask(*conversation_of(row))
        try:
            pieces = segments(self._tokenizer, messages, tools)
        except TemplateError:
            pieces = reply_pieces(self._tokenizer, messages, tools)
        pieces = self.stops.closed(pieces, messages)
        ids = self._encoder.ids([piece.text for piece in pieces], marks)
        return list(zip((piece.turn for piece in pieces), ids, strict=True))


def as_rendered(rows: pa.Table, trained: PreTrainedTokenizerBase, template: str) -> pa.Table:
    """The rows with `input_ids` and `labels` as the template renders them; the same replies are scored.

    Rows that it cannot render with the same supervised tokens are left out: they could not be compared.

    Args:
        rows: `messages`, `extra`, `input_ids`, `labels`, `n_supervised`.
        trained: the tokenizer and template of training.
        template: the file's own.

    Raises:
        UserError: no row is left.
    """
    if template == trained.chat_template:
        return rows
    file_tokenizer = copy.deepcopy(trained)
    file_tokenizer.chat_template = template
    before, after = Template(trained), Template(file_tokenizer)
    kept, found = [], []
    for index, row in enumerate(rows.to_pylist()):
        if pair := rendered(row, before, after):
            kept.append(index)
            found.append(pair)
    left_out = rows.num_rows - len(kept)
    if not kept:
        raise UserError(
            "the exported file's chat template renders no test row with the replies that were trained"
        )
    if left_out:
        print(
            f"{left_out:,} of {rows.num_rows:,} rows are left out: the file's chat template changes their replies"
        )
    rows = rows.take(kept)
    for name, values in zip(("input_ids", "labels"), zip(*found, strict=True), strict=True):
        field = rows.schema.field(name)
        rows = rows.set_column(rows.schema.get_field_index(name), field, pa.array(values, field.type))
    return rows


def rendered(
    row: Mapping[str, Any], trained: Template, served: Template
) -> tuple[list[int], list[int]] | None:
    """Token ids and labels of a row by the served template, cut after its last supervised token; None where the supervised tokens differ."""
    try:
        before, after = trained.parts_of(row), served.parts_of(row)
    except (TemplateError, Unrenderable):
        return None
    ids: list[int] = []
    learned = set()
    for turn, part in before:
        start, ids = len(ids), ids + part
        if any(label != IGNORE for label in row["labels"][start : len(ids)]):
            learned.add(turn)
    if ids[: len(row["input_ids"])] != row["input_ids"]:
        return None  # format rendered it in another way than in one piece per turn
    left = row["n_supervised"]
    input_ids: list[int] = []
    labels: list[int] = []
    for turn, part in after:
        end = next((at + 1 for at, token in enumerate(part) if token in trained.stops.ids), len(part))
        size = min(end, left) if turn in learned else 0
        left -= size
        input_ids += part
        labels += part[:size] + [IGNORE] * (len(part) - size)
        if not left:
            cut = len(labels) - (len(part) - size)
            same = replies(labels[:cut]) == replies(row["labels"])
            return (input_ids[:cut], labels[:cut]) if same else None
    return None


def replies(labels: Iterable[int]) -> list[int]:
    """The supervised tokens."""
    return [label for label in labels if label != IGNORE]


def scored(model: PreTrainedModel, rows: pa.Table, fmt: str, batch_tokens: int) -> pa.Table:
    """The file's loss on each row, by SERVED."""
    ids, labels = rows["input_ids"].to_pylist(), rows["labels"].to_pylist()
    columns = {name: rows[name] for name in ("id", "group", "source", "n_supervised")}
    columns |= {"format": pa.array([fmt] * rows.num_rows, pa.string())}
    columns |= {"nll": pa.array(conversation_nll(model, ids, labels, batch_tokens), pa.float64())}
    return pa.table(columns).select(SERVED.names).cast(SERVED)
