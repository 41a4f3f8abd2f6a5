"""Fitting a conversation into the context window: old turns go first, the system message and the question stay."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from abctune.llm.chat import Unrenderable, prefix, prompt_ids, text_ids
from abctune.llm.conversation import Message
from app.request import Refused
from app.thoughts import with_thoughts_apart

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prompt:
    """The tokens that an engine reads, and how many messages had to be left out."""

    ids: list[int]
    dropped: int  # messages left out, oldest first
    max_new_tokens: int  # tokens left for the answer


def fit(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], max_new_tokens: int, context: int
) -> Prompt:
    """Render the conversation as in training, without its oldest turns where it is too long.

    Raises:
        Refused: the last message alone does not fit.
    """
    messages = with_thoughts_apart(tokenizer, messages)
    reserved = min(max_new_tokens, context // 2)
    system = [message for message in messages[:1] if message["role"] == "system"]
    turns = messages[len(system) :]
    # A conversation may only start with a user's message, or the model sees an answer without its question.
    starts = [index for index, message in enumerate(turns) if message["role"] == "user"] or [
        max(len(turns) - 1, 0)
    ]
    rendered: dict[int, list[int]] = {}

    def fits(start: int) -> bool:
        """Whether the turns from this one on leave room for the answer.

        Raises:
            Refused: the chat template does not take such a conversation.
        """
        try:
            rendered[start] = prompt_ids(tokenizer, [*system, *turns[start:]])
        except Unrenderable as error:
            raise Refused(f"this model's chat template does not take such a conversation: {error}") from None
        return len(rendered[start]) + reserved <= context

    start = 0
    if not fits(0):
        # Fewer turns are never longer, so a bisection finds the first start that fits in a few renderings.
        position = bisect_left(starts, True, key=fits)
        if position == len(starts):
            raise Refused(
                f"your message is too long: it takes {len(rendered[starts[-1]]):,} tokens, and the context of "
                f"{context:,} must also hold the answer ({reserved:,})"
            )
        start = starts[position]
        fits(start)
    ids = rendered[start]
    return Prompt(ids, dropped=start, max_new_tokens=min(max_new_tokens, context - len(ids)))


def fit_text(tokenizer: PreTrainedTokenizerBase, text: str, max_new_tokens: int, context: int) -> Prompt:
    """Tokenize a text to be continued; names of control tokens in it are read as plain characters.

    Raises:
        Refused: it does not fit.
    """
    ids = [*prefix(tokenizer), *text_ids(tokenizer, text)]
    if not ids:
        raise Refused("an empty prompt; write something first")
    if len(ids) + min(max_new_tokens, context // 2) > context:
        raise Refused(f"your prompt is too long: it takes {len(ids):,} tokens of the context's {context:,}")
    return Prompt(ids, dropped=0, max_new_tokens=min(max_new_tokens, context - len(ids)))
