"""Fitting a conversation into the context window: old turns go first, the system message and the question stay."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.request import Refused
from stages.common.chat import control_tokens, prompt_ids, render, segments
from stages.common.conversation import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prompt:
    ids: list[int]
    dropped: int  # messages left out, oldest first
    room: int  # tokens left for the answer


def fit(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], max_new_tokens: int, context: int
) -> Prompt:
    """Render the conversation as in training, without its oldest turns where it is too long.

    Raises:
        Refused: the last message alone does not fit.
    """
    reserved = min(max_new_tokens, context // 2)
    system = [message for message in messages[:1] if message["role"] == "system"]
    turns = messages[len(system) :]
    # A conversation may only start with a user's message, or the model sees an answer to nothing.
    starts = [index for index, message in enumerate(turns) if message["role"] == "user"]
    rendered: dict[int, list[int]] = {}

    def fits(start: int) -> bool:
        rendered[start] = as_text(tokenizer, [*system, *turns[start:]])
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
    return Prompt(ids, dropped=start, room=min(max_new_tokens, context - len(ids)))


def as_text(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """`stages.common.chat.prompt_ids`, but a control token that someone wrote stays the characters they wrote.

    Training rejects such rows, so the two agree on all text that training has seen. Here a `<|im_end|>` in a
    message would end the user's turn and let the rest of the message speak as the system.
    """
    written = [
        token for token in control_tokens(tokenizer) if any(token in one["content"] for one in messages)
    ]
    if not written:
        return prompt_ids(tokenizer, messages)
    # One private-use character stands for each while the template is applied.
    stands_for = {chr(0xF0000 + index): token for index, token in enumerate(written)}
    masked = [Message(role=one["role"], content=_mask(one["content"], stands_for)) for one in messages]
    pieces = [text for text, _ in segments(tokenizer, masked[:-1])]
    prompt = render(tokenizer, masked, add_generation_prompt=True)
    pieces.append(prompt[len("".join(pieces)) :])
    split = re.compile(f"([{''.join(stands_for)}])")
    return [
        token
        for piece in pieces
        for part in split.split(piece)
        for token in tokenizer.encode(
            stands_for.get(part, part), add_special_tokens=False, split_special_tokens=part in stands_for
        )
    ]


def _mask(text: str, stands_for: dict[str, str]) -> str:
    for mark, token in sorted(stands_for.items(), key=lambda pair: -len(pair[1])):
        text = text.replace(mark, "").replace(token, mark)
    return text
