"""Conversations -> token ids and labels, by construction: only what the assistant wrote is supervised.

The conversation is cut at its assistant boundaries and each piece is tokenised apart, so a label never depends
on finding a header in text that a user may have typed. A search for headers, as in Unsloth's
train_on_responses_only, mislabelled 61 to 122 of 300 conversations with injected control tokens.

Where the template rewrites earlier turns (Qwen3 drops past thoughts), every reply becomes an example of its own, each
exactly what inference shows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from abctune.core.errors import UserError
from abctune.llm.chat import (
    FAILS,
    THINK_CLOSE,
    Encoder,
    Piece,
    TemplateError,
    Unrenderable,
    reply_pieces,
    segments,
)
from abctune.llm.conversation import IGNORE, Message, Tools
from abctune.llm.stops import Stops
from stages.format.places import NO_CALLS, NO_REASONING, NO_TOOLS, Places
from stages.format.repairs import Conversation, folded, merged
from stages.format.turns import Rejected

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

REWRITES = "chat template rewrites earlier turns"
CONTROL_NOTE = "control token's spelling kept as characters"


@dataclass(frozen=True)
class Example:
    """One rendered conversation: `input_ids` and `labels` of equal length, cut to max_length."""

    input_ids: Sequence[int] | NDArray[np.int32]
    labels: Sequence[int] | NDArray[np.int32]  # the token's own id where it is supervised, else IGNORE
    full_length: int  # tokens before the cut
    n_supervised: int  # tokens with a loss


@dataclass(frozen=True)
class Rendered:
    """One example's text in pieces, before it is tokenised."""

    pieces: list[Piece]
    supervised: frozenset[int]  # numbers of the turns that are learned
    marks: Mapping[str, str] = field(default_factory=dict)  # characters that stand for control tokens
    turns: int | None = None  # the example ends with this many messages; None: it has all of them

    @property
    def text(self) -> str:
        """The whole text, control tokens' spellings restored."""
        text = "".join(piece.text for piece in self.pieces)
        for mark, token in self.marks.items():
            text = text.replace(mark, token)
        return text


class Renderer:
    """Renders batches of conversations with one tokenizer, cutting each to max_length tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self._stops = Stops(tokenizer)
        self._encoder = Encoder(tokenizer)
        self._places = Places(tokenizer)

    def cut(self, conversation: Conversation) -> tuple[list[Rendered], Conversation]:
        """A conversation's examples, one or one per reply, and the conversation as rendered, with all repairs.

        It is tried as it is and then, while the template refuses it, with neighboring turns of one role joined, with the
        arguments of calls as text, and with the system message before the first question; the first that renders counts.

        Raises:
            Rejected: the template fails on this conversation, or leaves out a part of it.
        """
        attempts = [conversation]
        if (joined := merged(conversation)) is not conversation:
            attempts.append(joined)
        if any("tool_calls" in message for message in conversation.messages):
            attempts += [_with_text_arguments(one) for one in attempts]
        attempts += [other for one in attempts if (other := folded(one)) is not one]
        reasons = []
        for attempt in attempts:
            try:
                return self._render(attempt)
            except Unrenderable as error:
                reasons.append(str(error))
        raise Rejected(min(reasons, key=lambda reason: reason.startswith(FAILS)))

    def _render(self, conversation: Conversation) -> tuple[list[Rendered], Conversation]:
        messages, tools, marks = self._encoder.mask(conversation.messages, conversation.tools)
        if marks:
            conversation = replace(conversation, repairs=(*conversation.repairs, CONTROL_NOTE))
        learned = frozenset(number for number, learn in enumerate(conversation.supervised) if learn)
        try:
            pieces = self._stops.closed(segments(self.tokenizer, messages, tools), messages)
            whole = Rendered(pieces, learned, marks)
            check_complete(whole, messages, tools)
            self._check_places(messages, tools, one_reply=False)
            return [whole], conversation
        except TemplateError:
            each = [self._one_reply(messages[: turn + 1], tools, marks) for turn in sorted(learned)]
            return each, replace(conversation, repairs=(*conversation.repairs, "one example per reply"))

    def _one_reply(
        self, messages: Sequence[Message], tools: Tools | None, marks: Mapping[str, str]
    ) -> Rendered:
        try:
            pieces = reply_pieces(self.tokenizer, messages, tools)
        except TemplateError:
            raise Rejected(REWRITES) from None
        pieces = self._stops.closed(pieces, messages)
        example = Rendered(pieces, frozenset({len(messages) - 1}), marks, len(messages))
        check_complete(example, messages, tools, past_thoughts=False)
        self._check_places(messages, tools, one_reply=True)
        return example

    def _check_places(self, messages: Sequence[Message], tools: Tools | None, one_reply: bool) -> None:
        if reason := self._places.missing(messages, tools, one_reply):
            raise Rejected(reason)

    def encode(self, examples: Sequence[Rendered]) -> list[Example]:
        """Token ids and labels of a batch of examples."""
        plain = [one for one in examples if not one.marks]
        first = {0, *accumulate(len(one.pieces) for one in plain)}
        encoded = iter(self._encoder.ids([piece.text for one in plain for piece in one.pieces], begins=first))
        return [self._example(one, self._ids(one) if one.marks else encoded) for one in examples]

    def _ids(self, example: Rendered) -> Iterator[list[int]]:
        return iter(self._encoder.ids([piece.text for piece in example.pieces], example.marks, (0,)))

    def _example(self, rendered: Rendered, encoded: Iterator[list[int]]) -> Example:
        input_ids: list[int] = []
        labels: list[int] = []
        for piece in rendered.pieces:
            ids = next(encoded)
            supervised = self._through_stop(ids) if piece.turn in rendered.supervised else 0
            input_ids += ids
            labels += ids[:supervised] + [IGNORE] * (len(ids) - supervised)
        labels = labels[: self.max_length]
        n_supervised = len(labels) - labels.count(IGNORE)
        return Example(input_ids[: self.max_length], labels, len(input_ids), n_supervised)

    def _through_stop(self, ids: list[int]) -> int:
        """How many of a reply's ids to supervise: through its first stop token, at which inference ends.

        What some templates print after it (a line break; Phi-3's second end token) is context.

        Raises:
            UserError: the tokenizer reads the stop, which `Stops.closed` has found in the reply's text, as other tokens.
        """
        if found := [ids.index(stop) for stop in self._stops.ids if stop in ids]:
            return min(found) + 1
        raise UserError(
            "models/base: the tokenizer does not read the stop token after a reply as that token, so the model would"
            ' never learn to stop; if tokenizer.json gives that token "single_word": true, set it to false'
        )


def _with_text_arguments(conversation: Conversation) -> Conversation:
    """Tool calls with their arguments as JSON text, which DeepSeek's templates expect."""

    def as_text(call: dict[str, Any]) -> dict[str, Any]:
        """One tool call with its arguments as JSON text."""
        function = call["function"]
        arguments = json.dumps(function["arguments"], ensure_ascii=False)
        return {**call, "function": {**function, "arguments": arguments}}

    messages = [
        Message(**{**message, "tool_calls": [as_text(call) for call in message["tool_calls"]]})  # type: ignore[typeddict-item]
        if "tool_calls" in message
        else message
        for message in conversation.messages
    ]
    return replace(conversation, messages=messages)


def check_complete(
    rendered: Rendered, messages: Sequence[Message], tools: Tools | None, past_thoughts: bool = True
) -> None:
    """Check that every text of a conversation stands in what the template printed.

    A text may stand there by chance, as a tool's name in the question; that the template prints each part in a place of
    its own, stages.format.places finds out with texts that nobody writes.

    Args:
        past_thoughts: False where the template may drop the thoughts of earlier turns.

    Raises:
        Rejected: it left something out, named by its kind.
    """
    text = "".join(piece.text for piece in rendered.pieces)
    for number, message in enumerate(messages):
        content, last = message["content"].strip(), number == len(messages) - 1
        if not (past_thoughts or last):
            content = content.rpartition(THINK_CLOSE)[2].strip()
        if content not in text and not all(part.strip() in text for part in content.split(THINK_CLOSE)):
            raise Rejected(f"chat template leaves out the {message['role']}'s text")
        thoughts = message.get("reasoning_content", "").strip()
        if thoughts and thoughts not in text and (past_thoughts or last):
            raise Rejected(NO_REASONING)
        for call in message.get("tool_calls", ()):
            if not _printed(call["function"]["name"], text) or not all(
                _printed(part, text) for part in _leaves(call["function"]["arguments"])
            ):
                raise Rejected(NO_CALLS)
    for tool in tools or ():
        if not all(_printed(part.strip(), text) for part in _named(tool["function"])):
            raise Rejected(NO_TOOLS)


def _printed(value: str, text: str) -> bool:
    return value in text or json.dumps(value, ensure_ascii=False)[1:-1] in text


def _named(schema: Any) -> Iterator[str]:
    """A tool's name and all its descriptions: the texts that are the person's own, in any layout of a schema."""
    if isinstance(schema, list):
        for inner in schema:
            yield from _named(inner)
    elif isinstance(schema, dict):
        for key, inner in schema.items():
            if key in ("name", "description") and isinstance(inner, str):
                yield inner
            else:
                yield from _named(inner)


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
