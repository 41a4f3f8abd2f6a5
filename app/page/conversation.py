"""A conversation as the chat tab keeps it: what was said, by which model, with which settings."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from abctune.llm.conversation import Message
from app.models import Models
from app.page.parts import figures, in_line
from app.service import Reply, Waiting


@dataclass
class Turn:
    """One message; an answer also carries how it came about."""

    role: str
    text: str
    reply: Reply | None = None
    note: str | None = None  # the demo's own words in the place of an answer; no model sees it
    growing: bool = False
    ended: bool = False  # a person stopped it or took it back; whoever writes it looks here at every step
    record: dict[str, Any] = field(default_factory=dict)

    def display(self) -> dict[str, Any]:
        """What app.page.view draws: the raw text, and beside it what is said about it."""
        row: dict[str, Any] = {"role": self.role, "content": self.text}
        if self.note is not None:
            return row | {"content": self.note, "note": True}
        if self.reply is None:
            return row
        if self.growing and not self.ended:
            return row | {"growing": True}
        return row | {
            "figures": figures(self.reply, self.reply.request.model, self.reply.finish or "stopped")
        }


Conversation = list[Turn]


def display(conversation: Conversation) -> list[dict[str, Any]]:
    return [turn.display() for turn in conversation]


def messages(conversation: Conversation, system: str) -> list[Message]:
    """What the model reads. A question that got no answer is left out with the note below it."""
    kept: list[Message] = [{"role": "system", "content": system}] if system.strip() else []
    for turn, following in zip(conversation, [*conversation[1:], None], strict=True):
        unanswered = following is not None and (following.note is not None or not following.text)
        if turn.note is None and turn.text and not (turn.role == "user" and unanswered):
            kept.append({"role": turn.role, "content": turn.text})
    return kept


def update(turn: Turn, progress: Waiting | list[Reply], models: Models) -> None:
    """Take up what the service says, unless a person has ended the turn."""
    if turn.ended:
        return
    if isinstance(progress, Waiting):
        turn.note = in_line(progress.ahead)
        return
    turn.note, turn.reply, turn.growing = None, progress[0], progress[0].finish is None
    turn.text = turn.reply.text
    turn.record = _record(turn.reply, models)


def fail(turn: Turn, reason: str) -> None:
    turn.note = reason


def _record(reply: Reply, models: Models) -> dict[str, Any]:
    request = reply.request
    return {
        "model": request.model,
        "adapter_sha256": models.sha256(request.model),
        **request.sampling.model_dump(),
        "system": request.messages[0]["content"] if request.messages[0]["role"] == "system" else None,
        "dropped_messages": reply.dropped,
        "prompt_tokens": reply.n_prompt,
        "answer_tokens": reply.n_tokens,
        "finish": reply.finish or "stopped",
        "tokens_per_second": reply.tokens_per_second,
        "first_token_seconds": reply.first_token_seconds,
    }


def as_json(conversation: Conversation, engine: str) -> str:
    """The conversation with everything that an answer depends on."""
    rows = [
        {"role": turn.role, "content": turn.text, **({"how": turn.record} if turn.record else {})}
        for turn in conversation
        if turn.note is None
    ]
    return json.dumps({"engine": engine, "messages": rows}, indent=2, ensure_ascii=False)
