"""Records of the common dataset schemas -> normalised messages, or a reason why not.

sharegpt   {"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]}
alpaca     {"instruction": ..., "input": ..., "output": ...}
messages   {"messages": [{"role": "user", "content": ...}, ...]}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from abctune.core.files import RECORD_CHARACTERS
from abctune.llm.conversation import Message, Role, normalise

# The names the three roles go by in published ShareGPT and chat data; Unsloth's standardize_sharegpt knows the same.
ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "input": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "output": "assistant",
}
# More turns than any real dialogue has; a record beyond it is an accident, and costs a rendering a turn.
MAX_MESSAGES = 500


class Rejected(Exception):
    """A row that cannot be used; the argument is the reason that is counted."""


def to_messages(record: str, schema: str) -> list[Message]:
    """Read one record.

    Args:
        record: the record as fetched, JSON.
        schema: sharegpt, alpaca, messages, or auto (by the keys that are there).

    Raises:
        Rejected: with the reason.
    """
    fields = _parse(record)
    detected = _detect(fields) if schema == "auto" else schema
    pairs = {"sharegpt": _sharegpt, "alpaca": _alpaca, "messages": _messages}[detected](fields)
    messages = [Message(role=_role(role), content=_text(content)) for role, content in pairs]
    _check_turns(messages)
    return messages


def _parse(record: str) -> dict[str, Any]:
    if len(record) > RECORD_CHARACTERS:
        raise Rejected("too long")
    try:
        fields = json.loads(record)
    except RecursionError:
        raise Rejected("nested too deep") from None
    except ValueError:  # also a number of thousands of digits
        raise Rejected("not JSON") from None
    if not isinstance(fields, dict):
        raise Rejected("not a JSON object")
    return fields


def _detect(fields: dict[str, Any]) -> str:
    for key, schema in (("messages", "messages"), ("conversations", "sharegpt"), ("instruction", "alpaca")):
        if key in fields:
            return schema
    raise Rejected("schema not recognised")


def _sharegpt(fields: dict[str, Any]) -> list[tuple[Any, Any]]:
    return _turns(fields, "conversations", "from", "value")


def _messages(fields: dict[str, Any]) -> list[tuple[Any, Any]]:
    return _turns(fields, "messages", "role", "content")


def _turns(fields: dict[str, Any], key: str, role: str, content: str) -> list[tuple[Any, Any]]:
    turns = fields.get(key)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise Rejected(f"no list of turns under '{key}'")
    if len(turns) > MAX_MESSAGES:
        raise Rejected("too many messages")
    # Some sets write one schema's list with the other's keys; which keys a turn has is beyond doubt.
    return [
        (
            turn.get(role, turn.get("role", turn.get("from"))),
            turn.get(content, turn.get("content", turn.get("value"))),
        )
        for turn in turns
    ]


def _alpaca(fields: dict[str, Any]) -> list[tuple[Any, Any]]:
    if "instruction" not in fields or "output" not in fields:
        raise Rejected("no 'instruction' or no 'output'")
    context = fields.get("input") or ""
    instruction = _text(fields["instruction"])
    # Alpaca's own layout: the context follows the instruction after an empty line.
    return [
        ("user", f"{instruction}\n\n{_text(context)}" if context else instruction),
        ("assistant", fields["output"]),
    ]


def _role(name: Any) -> Role:
    if not isinstance(name, str) or name.lower() not in ROLES:
        raise Rejected("unknown role")
    return ROLES[name.lower()]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise Rejected("content is not text")
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell and UTF-8 cannot
        raise Rejected("not UTF-8") from None
    if "\ufffd" in value:  # what a decoder leaves where bytes were no UTF-8
        raise Rejected("not UTF-8")
    text = normalise(value)
    if not text:
        raise Rejected("empty message")
    return text


def _check_turns(messages: list[Message]) -> None:
    roles = [message["role"] for message in messages]
    if not roles:
        raise Rejected("empty conversation")
    turns = roles[1:] if roles[0] == "system" else roles
    if "assistant" not in turns:
        raise Rejected("no assistant turn")
    if any(role != ("user", "assistant")[index % 2] for index, role in enumerate(turns)):
        raise Rejected("wrong turn order")
