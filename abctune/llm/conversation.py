"""A conversation: its messages in one normal form, and the identities that follow from them."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable
from typing import Literal, TypedDict

IGNORE = -100  # the label of a token without loss: what torch's cross entropy skips
Role = Literal["system", "user", "assistant"]


class Message(TypedDict):
    role: Role
    content: str


def normalise(text: str) -> str:
    """Unicode NFC, no white space at the ends: texts that look alike become equal."""
    return unicodedata.normalize("NFC", text).strip()


def text_hash(text: str) -> str:
    """Hex blake2b-128 of a text."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def conversation_id(messages: Iterable[Message]) -> str:
    """Hex blake2b-128 of the messages' canonical JSON: equal conversations have equal ids."""
    canonical = [[message["role"], message["content"]] for message in messages]
    return text_hash(json.dumps(canonical, ensure_ascii=False, separators=(",", ":")))


def conversation_group(messages: Iterable[Message]) -> str:
    """The default group: conversations that open with the same user message stay on one side of the split."""
    first = next(message["content"] for message in messages if message["role"] == "user")
    return text_hash(first)
