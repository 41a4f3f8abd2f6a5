"""Thoughts in an answer: their marks are shown, and later prompts have them where training has them.

Answers are read and written as token ids, without llama.cpp's own parser of answers. Most models write thoughts between
marks that are text (`<think>`). Where the marks are special tokens (gpt-oss, Gemma 4), decoding would leave them out and run
thoughts and answer together.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Sequence
from typing import TYPE_CHECKING

from abctune.llm.chat import Unrenderable, render
from abctune.llm.conversation import Message
from abctune.llm.thoughts import PAIRS, THOUGHTS, opening, parted
from abctune.llm.tokenizer import REPLY_MARKUP, special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A template that prints a reply's thoughts from a field of their own, or leaves out that field's in past turns.
HAS_A_PLACE = re.compile(r"reasoning_content|message\.thinking|['\"]thinking['\"] in message")
ANY = [Message(role="user", content="a")]


def shown_marks(tokenizer: PreTrainedTokenizerBase, stops: Container[int]) -> dict[int, str]:
    """{id: text} of the special tokens that mark thoughts, which an answer's text shows although they are special."""
    special = special_tokens(tokenizer)
    found: dict[int, str] = {}
    for pair in PAIRS:
        inside = [[token for token in special if token in mark] for mark in pair]
        if all(inside):
            found |= {special[token]: token for tokens in inside for token in tokens}
    return {number: token for number, token in found.items() if number not in stops}


def with_thoughts_apart(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[Message]:
    """The conversation with the thoughts of past answers where the template has a place for them.

    Marks that are special tokens can't stand in a text that goes into a prompt: where the template has no place for
    thoughts (Gemma 4's prints none of past turns), those between such marks are left out.
    """
    marks = [mark for pair in PAIRS for mark in pair]
    if not any(message["role"] == "assistant" and _has(message, marks) for message in messages):
        return list(messages)
    has_a_place = HAS_A_PLACE.search(tokenizer.chat_template or "") is not None
    special = special_tokens(tokenizer).keys() - REPLY_MARKUP
    opened = _opened(tokenizer)

    def apart(message: Message) -> Message:
        """The message with its thoughts, if it has any, in a field of their own or left out."""
        if message["role"] != "assistant" or not (has_a_place or _has(message, special)):
            return message
        closed = _has(message, [close for _, close in THOUGHTS])
        thoughts, answer = parted(message["content"], opened if closed else "")
        if answer == message["content"].lstrip():
            return message
        if has_a_place and thoughts:
            return Message(role="assistant", content=answer, reasoning_content=thoughts)
        return Message(role="assistant", content=answer)

    return [apart(message) for message in messages]


def _has(message: Message, marks: Iterable[str]) -> bool:
    return any(mark in message["content"] for mark in marks)


def _opened(tokenizer: PreTrainedTokenizerBase) -> str:
    """The mark at the end of a prompt, where the template opens the thoughts there."""
    try:
        return opening(render(tokenizer, ANY, add_generation_prompt=True))
    except Unrenderable:
        return ""
