"""Batches of records -> rows to train on and rows for quarantine, counted."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from abctune.core.params import SourceParams
from abctune.core.records import FormatRecord
from abctune.llm.conversation import Message, conversation_group, conversation_id, extras
from abctune.llm.tokenizer import template_hash
from stages.format.preview import PREVIEW_ROWS, Preview
from stages.format.render import Example, Rendered, Renderer
from stages.format.repairs import Conversation
from stages.format.schemas import Reader
from stages.format.summary import Tally
from stages.format.turns import Rejected

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NOTHING_LEFT = "nothing supervised after truncation"
TOO_LONG = "longer than max_length"  # where the source says `overlong: drop`


class Formatter:
    """Formats record batches; what it has seen so far is in `tally` and `preview`."""

    def __init__(
        self,
        sources: Mapping[str, SourceParams],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        preview_rows: int = PREVIEW_ROWS,
    ) -> None:
        self._sources = sources
        self._readers = {name: Reader(options) for name, options in sources.items()}
        self._renderer = Renderer(tokenizer, max_length)
        self._seen: set[str] = set()
        self.tally = Tally(max_length)
        self.preview = Preview(tokenizer, preview_rows)
        self._template_hash = template_hash(tokenizer)

    def batch(self, records: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Format some records of data/mixed; returns the rows to keep and the rows to quarantine."""
        parsed, rejected = [], []
        kept: list[dict[str, Any]] = []
        for record in records:
            try:
                conversation = self._readers[record["source"]].read(record["record"])
                if record.get("problem"):  # what fetch found wrong with the row's bytes
                    raise Rejected(record["problem"])
                parsed.append((record, conversation, *self._renderer.cut(conversation)))
            except Rejected as reason:
                rejected.append(self._reject(record, str(reason)))
        examples = iter(self._renderer.encode([one for _, _, rendered, _ in parsed for one in rendered]))
        for record, conversation, rendered, repairs in parsed:
            pairs = [(one, next(examples)) for one in rendered]
            try:
                kept += self._keep(record, conversation, self._usable(record["source"], pairs), repairs)
            except Rejected as reason:
                rejected.append(self._reject(record, str(reason)))
        return kept, rejected

    def record(self) -> FormatRecord:
        """What has been counted so far."""
        return self.tally.record(self._template_hash)

    def _usable(self, source: str, pairs: list[tuple[Rendered, Example]]) -> list[tuple[Rendered, Example]]:
        if self._sources[source].overlong == "drop":
            pairs = [pair for pair in pairs if pair[1].full_length <= self._renderer.max_length]
            if not pairs:
                raise Rejected(TOO_LONG)
        pairs = [pair for pair in pairs if pair[1].n_supervised]
        if not pairs:
            raise Rejected(NOTHING_LEFT)
        return pairs

    def _keep(
        self,
        record: dict[str, Any],
        conversation: Conversation,
        pairs: list[tuple[Rendered, Example]],
        repairs: tuple[str, ...],
    ) -> Iterator[dict[str, Any]]:
        messages, source = conversation.messages, record["source"]
        identity = conversation_id(messages, conversation.tools, conversation.marks)
        if identity in self._seen:
            self.tally.duplicate(source)
            return
        self._seen.add(identity)
        self.tally.kept(source, [example for _, example in pairs], repairs)
        for rendered, example in pairs:
            name = identity if rendered.turns is None else f"{identity}-{rendered.turns - 1}"
            self.preview.add(source, name, example, repairs)
            shown = messages[: rendered.turns]
            yield {
                "id": name,
                "group": record["group"] or conversation_group(messages),
                "source": source,
                "messages": shown,
                "extra": _extra(shown, conversation),
                "input_ids": example.input_ids,
                "labels": example.labels,
                "n_tokens": len(example.input_ids),
                "n_supervised": example.n_supervised,
            }

    def _reject(self, record: dict[str, Any], reason: str) -> dict[str, Any]:
        self.tally.quarantined(record["source"], reason)
        return {
            "source": record["source"],
            "row": record["row"],
            "reason": reason,
            "record": record["record"],
        }


def _extra(messages: list[Message], conversation: Conversation) -> str | None:
    """What a conversation holds besides roles and texts, as JSON; None where that is nothing, as in most."""
    by_turn = [extras(message) for message in messages]
    if not (conversation.tools or any(by_turn)):
        return None
    return json.dumps({"tools": conversation.tools, "messages": by_turn}, ensure_ascii=False)
