"""A conversation as the chat tab keeps it: what was said, by which model, with which settings."""

from __future__ import annotations

import itertools
import json
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from abctune.llm.conversation import Message
from app.engines import TokenScore
from app.models import Models
from app.page.parts import figures, queue_position, record_of
from app.request import MAX_CHARACTERS, MAX_MESSAGES, Refused, Sampling
from app.service import Reply, Waiting

MAX_STORED = 4_000_000  # characters of a stored conversation
# Handlers run in threads; what they change of a conversation they change under this lock. One for all conversations, since
# it is held for microseconds.
CONVERSATION_LOCK = threading.RLock()


@dataclass
class Turn:
    """One message; an answer also carries a record of how it was generated."""

    role: Literal["user", "assistant"]
    text: str
    reply: Reply | None = None
    note: str | None = None  # a message of the demo in place of an answer; no model sees it
    streaming: bool = False  # whether its text is still being written
    canceled: bool = (
        False  # a person stopped it or took it back; the thread that writes it checks this at every step
    )
    record: dict[str, Any] = field(default_factory=dict)
    scores: Sequence[TokenScore] | None = None  # of its tokens, while they are shown

    def display(self) -> dict[str, Any]:
        """What app.page.view draws: the raw text, and what is said about it."""
        row: dict[str, Any] = {"role": self.role, "content": self.text}
        if self.streaming and not self.canceled:
            row["streaming"] = True
        if self.note is not None:
            return row | {"content": self.note, "note": True}
        if "streaming" in row:
            return row
        if not self.record:
            return row
        told = {"figures": figures(self.record), "how": self.record, "model": self.record.get("model", "")}
        return row | told | {"scores": self.scores}


class Conversation(list[Turn]):
    """Turns, and the key under which the browser keeps them; a new one at the first message."""

    key: str = ""
    opened: int = 0  # how often another conversation was put in this one's place, or was about to be

    def begin(self) -> None:
        """Give it a key, unless it has one."""
        self.key = self.key or secrets.token_hex(8)

    def begin_answer(self) -> Turn | None:
        """Add an answer that is to be written; None unless the last message is a person's."""
        with CONVERSATION_LOCK:
            if not self or self[-1].role != "user":
                return None
            self.append(Turn("assistant", "", streaming=True))
            return self[-1]

    def begin_opening(self) -> int:
        """A number for a conversation that is about to be opened in the place of this one."""
        with CONVERSATION_LOCK:
            self.opened += 1
            return self.opened


class _How(BaseModel):
    """What is read of a stored answer's record; the record may hold more."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    model: Annotated[str, Field(max_length=200)] = ""
    answer_tokens: int | None = None
    tokens_per_second: float | None = None
    first_token_seconds: float | None = None
    dropped_messages: int = 0
    finish: str = ""
    system: Annotated[str, Field(max_length=MAX_CHARACTERS)] | None = None
    adapter_strength: float = 1.0


class _Stored(BaseModel):
    """One message as the browser keeps it and as the downloaded JSON has it."""

    role: Literal["user", "assistant"]
    content: Annotated[str, Field(max_length=MAX_CHARACTERS)]
    how: _How | None = None


class _StoredConversation(BaseModel):
    key: Annotated[str, Field(pattern=r"^[a-z0-9]{1,40}$")]
    messages: Annotated[list[_Stored], Field(min_length=1, max_length=MAX_MESSAGES)]


def read_stored(text: Any) -> Conversation:
    """A conversation that the browser kept, or a person has imported.

    Raises:
        Refused: the text is no such conversation.
    """
    try:
        if not isinstance(text, str) or len(text) > MAX_STORED:
            raise Refused("this conversation is too long to be opened")
        stored = TypeAdapter(_StoredConversation).validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise Refused(f"this is no conversation of this demo: {place}: {problem['msg'].lower()}") from None
    found = Conversation(_turn(message) for message in stored.messages)
    found.key = stored.key
    return found


def _turn(stored: _Stored) -> Turn:
    text = stored.content.encode("utf-8", "replace").decode("utf-8")  # no lone surrogates
    if stored.role == "user":
        return Turn("user", text)
    # An answer without a record was being written when the page was left.
    record = stored.how.model_dump(exclude_unset=True) if stored.how else {"finish": "interrupted"}
    return Turn("assistant", text, record=record)


def sampling_of_record(record: dict[str, Any]) -> Sampling | None:
    """The settings in an answer's record; None if they are none."""
    try:
        return Sampling.model_validate(
            {name: record[name] for name in Sampling.model_fields if name in record}
        )
    except ValidationError:
        return None


@dataclass(frozen=True)
class Drawing:
    """A conversation at one moment, as app.page.view draws it; a later moment has a higher number."""

    number: int
    key: str
    rows: list[dict[str, Any]]


# From the clock, so that a page which outlives a restart of the demo meets higher numbers.
_NUMBERS = itertools.count(int(time.time() * 1000))


def display(conversation: Conversation) -> Drawing:
    """The conversation as it is now."""
    with CONVERSATION_LOCK:
        return Drawing(next(_NUMBERS), conversation.key, [turn.display() for turn in conversation])


def messages(conversation: Sequence[Turn], system: str) -> list[Message]:
    """What the model reads. A question that got no answer is left out with the note below it."""
    kept: list[Message] = [{"role": "system", "content": system}] if system.strip() else []
    for turn, following in zip(conversation, [*conversation[1:], None], strict=True):
        unanswered = following is not None and (following.note is not None or not following.text)
        if turn.note is None and turn.text and not (turn.role == "user" and unanswered):
            kept.append({"role": turn.role, "content": turn.text})
    return kept


def update(turn: Turn, progress: Waiting | list[Reply], models: Models) -> None:
    """Apply what the service reports, unless a person has canceled the turn."""
    if turn.canceled:
        return
    if isinstance(progress, Waiting):
        turn.note = queue_position(progress.ahead)
        return
    turn.note, turn.reply, turn.streaming = None, progress[0], progress[0].finish is None
    turn.text = turn.reply.text
    turn.record = record_of(turn.reply, models)


def fail(turn: Turn, reason: str) -> None:
    """Say on a turn why it has no answer."""
    turn.note = reason


def as_json(conversation: Sequence[Turn], engine: str, about: Mapping[str, Any] | None = None) -> str:
    """The conversation with everything that an answer depends on; `about`: what models.about() says."""
    rows = [
        {"role": turn.role, "content": turn.text, **({"how": turn.record} if turn.record else {})}
        for turn in conversation
        if turn.note is None
    ]
    return json.dumps({"engine": engine, **(about or {}), "messages": rows}, indent=2, ensure_ascii=False)
