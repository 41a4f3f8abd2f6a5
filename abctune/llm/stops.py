"""The tokens that end a reply: those that the model names, and those that its chat template shows.

Most templates end a reply with a token of its own. Some (GLM-4) print none: there the token with which the next turn begins
ends the reply, `<|user|>` after an answer and `<|observation|>` after a call. Such a model learns to write it, and
inference stops at it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from abctune.llm.chat import Piece, Unrenderable, render
from abctune.llm.conversation import Message, Tools
from abctune.llm.tokenizer import named_stops, special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_STOP = "chat template ends with no stop token"
SAID = "zq0qz"  # a text that no template prints by itself
QUESTION, ANSWER = Message(role="user", content="a"), Message(role="assistant", content=SAID)
CALLED = {"type": "function", "function": {"name": "tool", "arguments": {"key": SAID}}}
CALL = Message(role="assistant", content="", tool_calls=[CALLED])
RESULT = Message(role="tool", content="b", name="tool")
TOOL = {
    "type": "function",
    "function": {
        "name": "tool",
        "description": "a tool",
        "parameters": {"type": "object", "properties": {"key": {"type": "string", "description": "a key"}}},
    },
}


class Stops:
    """The tokens that end one tokenizer's replies."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        special = special_tokens(tokenizer)
        named = named_stops(tokenizer)
        texts = {token: number for token, number in special.items() if number in named}
        self._after_answer = _ends(tokenizer, special, texts, ANSWER, QUESTION, None)
        self._after_call = _ends(tokenizer, special, texts, CALL, RESULT, [TOOL])
        derived = {special[token] for token in (self._after_answer, self._after_call) if token}
        self.ids = named | derived
        self._texts = tuple(token for token, number in special.items() if number in self.ids)

    def closed(self, pieces: Sequence[Piece], messages: Sequence[Message]) -> list[Piece]:
        """The pieces of a rendered conversation, each reply with the stop that ends it.

        Where the template prints none, it is the token with which the next turn begins; after the last reply, where no
        turn follows, the one with which it would begin. The text stays what it is but for that last token.

        Raises:
            Unrenderable: nothing ends a reply, so a model would never learn to stop.
        """
        found = list(pieces)
        for place, piece in enumerate(found):
            if piece.turn is None or any(stop in piece.text for stop in self._texts):
                continue
            follows = found[place + 1] if place + 1 < len(found) else None
            stop = self._next(messages[piece.turn], follows)
            if follows is not None:
                found[place + 1] = replace(follows, text=follows.text[len(stop) :])
            found[place] = replace(piece, text=piece.text + stop)
        return found

    def _next(self, reply: Message, follows: Piece | None) -> str:
        """The stop that begins what follows a reply."""
        if follows is None:
            stop = self._after_call if "tool_calls" in reply else self._after_answer
        else:
            stop = next((stop for stop in self._texts if follows.text.startswith(stop)), None)
        if not stop:
            raise Unrenderable(f"{NO_STOP} after a {'tool call' if 'tool_calls' in reply else 'reply'}")
        return stop


def stop_token_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids that end a reply: see `named_stops`, and what the chat template shows where it prints none of these."""
    return Stops(tokenizer).ids


def _ends(
    tokenizer: PreTrainedTokenizerBase,
    special: dict[str, int],
    named: dict[str, int],
    reply: Message,
    answer: Message,
    tools: Tools | None,
) -> str | None:
    """The token that ends a reply of this kind where the template prints no named one after it; else None.

    A special token after an answer's text ends it; after a call it may only close the call, of which there can be several.
    Then, and where the template prints nothing after the text, it is the special token with which the next turn begins.

    Args:
        special, named: special tokens with their ids: all of them, and those that the model's files name as a reply's end.
        reply, answer: a reply that holds SAID, and a turn that can follow it.
    """
    try:
        through = render(tokenizer, [QUESTION, reply], add_generation_prompt=False, tools=tools)
        further = render(tokenizer, [QUESTION, reply, answer], add_generation_prompt=False, tools=tools)
    except Unrenderable:
        return None
    _, said, tail = through.rpartition(SAID)
    if not said or any(stop in tail for stop in named):
        return None
    printed = sorted((token for token in special if token in tail), key=tail.index)
    if printed and tools is None:
        return printed[0]
    begins = further[len(through) :] if further.startswith(through) else ""
    follows = max((token for token in special if begins.startswith(token)), key=len, default=None)
    return None if printed and follows not in named else follows
