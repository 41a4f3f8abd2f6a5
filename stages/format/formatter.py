"""Batches of records -> rows to train on and rows for quarantine, counted."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from abctune.core.params import SourceParams
from abctune.core.records import FormatRecord
from abctune.core.schemas import UNEVEN_ROW
from abctune.llm.conversation import Message, conversation_group, conversation_id, extras
from abctune.llm.tokenizer import template_hash
from stages.format.preview import PREVIEW_ROWS, Preview
from stages.format.render import Example, Rendered, Renderer
from stages.format.repairs import Conversation
from stages.format.schemas import NOT_JSON, Reader
from stages.format.summary import Tally
from stages.format.turns import Rejected

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NOTHING_LEFT = "nothing supervised after truncation"
TOO_LONG = "longer than max_length"  # where the source says `overlong: drop`
BY_TEMPLATE = "chat template"  # how the reasons begin for which a chat template refuses a conversation
REMEMBERED = 8  # such rows of each source: enough to see whether another setting of the template helps


@dataclass(frozen=True)
class Refused:
    """A record that cannot be used, and why."""

    record: dict[str, Any]
    reason: str
    n_tokens: int = 0  # of the longest example, where the cut leaves nothing to learn


@dataclass(frozen=True)
class Usable:
    """A record as token ids: each example with its row of rows.parquet."""

    identity: str  # of the conversation: the same for the same content
    source: str
    examples: list[tuple[dict[str, Any], Example]]
    repairs: tuple[str, ...]

    def packed(self) -> Usable:
        """The same with 4 bytes per token id instead of about 40, since several batches wait to be written.

        NumPy's arrays, which Arrow copies as a whole: it takes 0.15 ms a row to read other ones number by number.
        """
        examples = []
        for row, example in self.examples:
            ids, labels = np.array(example.input_ids, np.int32), np.array(example.labels, np.int32)
            small = replace(example, input_ids=ids, labels=labels)
            examples.append((row | {"input_ids": ids, "labels": labels}, small))
        return replace(self, examples=examples)


class RecordReader:
    """Makes token ids and labels of records, of each for itself: the part of the work that several processes share."""

    def __init__(
        self,
        sources: Mapping[str, SourceParams],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        groups: Mapping[str, str | None],
    ) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self._sources, self._groups = sources, groups
        self._readers = {name: Reader(options, groups.get(name)) for name, options in sources.items()}
        self._renderer = Renderer(tokenizer, max_length)

    def with_template(self, template: str) -> RecordReader:
        """The same with another chat template."""
        tokenizer = copy(self.tokenizer)
        tokenizer.chat_template = template
        return RecordReader(self._sources, tokenizer, self.max_length, self._groups)

    def read(self, records: list[dict[str, Any]]) -> list[Usable | Refused]:
        """Some records of data/mixed, in their order."""
        parsed: list[tuple[int, dict[str, Any], Conversation, list[Rendered], Conversation]] = []
        found: dict[int, Usable | Refused] = {}
        for number, record in enumerate(records):
            try:
                conversation = self._readers[record["source"]].read(record["record"])
                if record.get("problem"):  # what fetch found wrong with the row in its file
                    raise Rejected(record["problem"])
                parsed.append((number, record, conversation, *self._renderer.cut(conversation)))
            except Rejected as reason:
                uneven = str(reason) == NOT_JSON and record.get("problem") == UNEVEN_ROW
                found[number] = Refused(record, UNEVEN_ROW if uneven else str(reason))
        examples = iter(self._renderer.encode([one for *_, rendered, _ in parsed for one in rendered]))
        for number, record, conversation, rendered, as_rendered in parsed:
            pairs = [(one, next(examples)) for one in rendered]
            n_tokens = max(example.full_length for _, example in pairs)
            try:
                pairs = self._not_empty(record["source"], pairs)
                found[number] = _usable(record, conversation, pairs, as_rendered)
            except Rejected as reason:
                found[number] = Refused(record, str(reason), n_tokens)
        return [found[number] for number in range(len(records))]

    def _not_empty(
        self, source: str, pairs: list[tuple[Rendered, Example]]
    ) -> list[tuple[Rendered, Example]]:
        if self._sources[source].overlong == "drop":
            pairs = [pair for pair in pairs if pair[1].full_length <= self.max_length]
            if not pairs:
                raise Rejected(TOO_LONG)
        pairs = [pair for pair in pairs if pair[1].n_supervised]
        if not pairs:
            raise Rejected(NOTHING_LEFT)
        return pairs


class Formatter:
    """Formats record batches; what it has seen so far is in `tally` and `preview`.

    `refused` has, by source, the first records that the chat template refuses.
    """

    def __init__(
        self,
        sources: Mapping[str, SourceParams],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        preview_rows: int = PREVIEW_ROWS,
        groups: Mapping[str, str | None] = {},
    ) -> None:
        """With the sources' columns of `group_by`, which need not be a part of the conversation."""
        self.reader = RecordReader(sources, tokenizer, max_length, groups)
        self._seen: set[str] = set()
        self.tally = Tally(max_length)
        self.preview = Preview(tokenizer, preview_rows)
        self.refused: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        self._template_hash = template_hash(tokenizer)

    def batch(self, records: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Format some records of data/mixed; returns the rows to keep and the rows to quarantine."""
        return self.sort(self.reader.read(records))

    def sort(self, found: list[Usable | Refused]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Count what was read, in its order; returns the rows to keep and the rows to quarantine."""
        kept: list[dict[str, Any]] = []
        rejected: list[dict[str, Any]] = []
        for one in found:
            if isinstance(one, Refused):
                rejected.append(self._reject(one))
            else:
                kept += self._keep(one)
        return kept, rejected

    def record(self) -> FormatRecord:
        """The counts so far."""
        return self.tally.record(self._template_hash)

    def _keep(self, one: Usable) -> list[dict[str, Any]]:
        if one.identity in self._seen:
            self.tally.duplicate(one.source)
            return []
        self._seen.add(one.identity)
        self.tally.kept(one.source, [example for _, example in one.examples], one.repairs)
        for row, example in one.examples:
            self.preview.add(one.source, row["id"], example, one.repairs)
        return [row for row, _ in one.examples]

    def _reject(self, one: Refused) -> dict[str, Any]:
        self.tally.quarantined(one.record["source"], one.reason, one.n_tokens)
        refused = self.refused[one.record["source"]]
        if one.reason.startswith(BY_TEMPLATE) and len(refused) < REMEMBERED:
            refused.append(one.record)
        kept = {key: one.record[key] for key in ("source", "row", "record")}
        return {**kept, "reason": one.reason}


def _usable(
    record: dict[str, Any],
    conversation: Conversation,
    pairs: list[tuple[Rendered, Example]],
    as_rendered: Conversation,
) -> Usable:
    """The rows of a conversation: its identity and group as the data have it, its messages as they were rendered."""
    identity = conversation_id(conversation.messages, conversation.tools, conversation.marks)
    group = record["group"] or conversation_group(conversation.messages)
    examples = []
    for rendered, example in pairs:
        shown = as_rendered.messages[: rendered.turns]
        row = {
            "id": identity if rendered.turns is None else f"{identity}-{rendered.turns - 1}",
            "group": group,
            "source": record["source"],
            "messages": shown,
            "extra": _extra(rendered, shown, as_rendered),
            "input_ids": example.input_ids,
            "labels": example.labels,
            "n_tokens": len(example.input_ids),
            "n_supervised": example.n_supervised,
        }
        examples.append((row, example))
    return Usable(identity, record["source"], examples, as_rendered.repairs)


def _extra(rendered: Rendered, messages: list[Message], conversation: Conversation) -> str | None:
    """An example's data other than roles and texts, as JSON; None in most examples, which have none."""
    by_turn = [extras(message) for message in messages]
    found: dict[str, Any] = {}
    if conversation.tools or any(by_turn):
        found = {"tools": conversation.tools, "messages": by_turn}
    if conversation.marks or rendered.turns is not None:
        found["supervised"] = [number in rendered.supervised for number in range(len(messages))]
    return json.dumps(found, ensure_ascii=False) if found else None
