"""A conversation: its messages in one normal form, and the identities that follow from them."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict, cast

IGNORE = -100  # the label of a token without loss: what torch's cross entropy skips
Role = Literal["system", "user", "assistant", "tool"]


class Message(TypedDict):
    """One turn, as transformers' chat templates take it; `content` is "" where a turn holds tool calls alone."""

    role: Role
    content: str
    tool_calls: NotRequired[list[dict[str, Any]]]  # [{"type": "function", "function": {"name", "arguments"}}]
    reasoning_content: NotRequired[str]  # what the assistant thought before it answered
    tool_call_id: NotRequired[str]
    name: NotRequired[str]


Tools = list[dict[str, Any]]  # JSON schemas: [{"type": "function", "function": {"name", "parameters", ...}}]


def normalise(text: str) -> str:
    """Unicode NFC, no white space at the ends: texts that look alike become equal. For comparing, never for training."""
    return unicodedata.normalize("NFC", text).strip()


def text_hash(text: str) -> str:
    """Hex blake2b-128 of a text."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def conversation_id(
    messages: Iterable[Message], tools: Tools | None = None, supervised: Sequence[bool] | None = None
) -> str:
    """Hex blake2b-128 of a conversation: equal conversations have equal ids.

    Args:
        messages: compared after `normalise`.
        tools: the tools that the assistant may call.
        supervised: per message, where not all replies are.
    """
    canonical: list[Any] = [[message["role"], normalise(message["content"])] for message in messages]
    extra = [extras(message) for message in messages]
    if tools or any(extra) or supervised is not None:
        canonical += [{"extra": extra, "tools": tools, "supervised": supervised and list(supervised)}]
    return text_hash(json.dumps(canonical, ensure_ascii=False, separators=(",", ":"), sort_keys=True))


def extras(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message's fields other than its role and text."""
    return {key: value for key, value in message.items() if key not in ("role", "content")}


def conversation_of(row: Mapping[str, Any]) -> tuple[list[Message], Tools | None]:
    """A formatted row's messages with their calls and reasoning, and its tools.

    Args:
        row: columns `messages` and `extra` of FORMATTED_ROWS.
    """
    extra = json.loads(row["extra"]) if row.get("extra") else {}
    by_turn = extra.get("messages") or [{}] * len(row["messages"])
    messages = [message | (more or {}) for message, more in zip(row["messages"], by_turn, strict=True)]
    return cast(list[Message], messages), extra.get("tools")


def learned_turns(row: Mapping[str, Any]) -> list[bool]:
    """For each of a formatted row's messages whether it is a reply that is supervised.

    Args:
        row: columns `messages` and `extra` of FORMATTED_ROWS.
    """
    marks = json.loads(row["extra"]).get("supervised") if row.get("extra") else None
    return marks or [message["role"] == "assistant" for message in row["messages"]]


def conversation_group(messages: Iterable[Message]) -> str:
    """The default group: conversations that begin with the same user message stay in one subset of the split.

    Without a user's message the first one that is not the system's stands for it.
    """
    turns = [message for message in messages if message["role"] != "system"]
    first = next((message for message in turns if message["role"] == "user"), turns[0])
    return text_hash(normalise(first["content"]))
