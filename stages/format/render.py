"""Messages -> token ids and labels, by construction: only what the assistant wrote is supervised.

The conversation is cut at its assistant boundaries and each piece is tokenised apart, so a label never depends
on finding a header in text that a user may have typed. A search for headers, as in Unsloth's
train_on_responses_only, mislabelled 61 to 122 of 300 conversations with injected control tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from abctune.llm.chat import TemplateError, Unrenderable, control_tokens, segments, stop_token_ids
from abctune.llm.conversation import IGNORE, Message
from stages.format.schemas import Rejected

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Pieces = list[tuple[str, bool]]  # (text, is it a reply)


@dataclass(frozen=True)
class Example:
    """One rendered conversation: `input_ids` and `labels` of equal length, cut to max_length."""

    input_ids: list[int]
    labels: list[int]  # the token's own id where it is supervised, else IGNORE
    full_length: int  # tokens before the cut

    @property
    def n_supervised(self) -> int:
        return sum(label != IGNORE for label in self.labels)


class Renderer:
    """Renders batches of conversations with one tokenizer, cutting each to max_length tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self._stops = stop_token_ids(tokenizer)
        self._control = re.compile("|".join(map(re.escape, control_tokens(tokenizer))))

    def cut(self, messages: Sequence[Message]) -> Pieces:
        """One conversation's text in pieces, see abctune.llm.chat.segments.

        Raises:
            Rejected: a text holds a control token, which would be trained as a real turn boundary, or the
                template fails on this conversation or rewrites earlier turns of it.
        """
        if any(self._control.search(message["content"]) for message in messages):
            raise Rejected("control token in text")
        try:
            return segments(self.tokenizer, messages)
        except TemplateError:
            raise Rejected("chat template rewrites earlier turns") from None
        except Unrenderable as error:
            raise Rejected(str(error)) from None

    def encode(self, conversations: Sequence[Pieces]) -> list[Example]:
        """Token ids and labels of a batch of cut conversations."""
        encoded = iter(self._tokenise([text for pieces in conversations for text, _ in pieces]))
        return [
            self._example([(next(encoded), is_reply) for _, is_reply in pieces]) for pieces in conversations
        ]

    def _tokenise(self, texts: list[str]) -> list[list[int]]:
        # The tokenizer's Rust core on all cores; transformers' wrapper would build unused masks and offsets.
        encodings = self.tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _example(self, pieces: list[tuple[list[int], bool]]) -> Example:
        input_ids: list[int] = []
        labels: list[int] = []
        for ids, is_reply in pieces:
            supervised = self._through_stop(ids) if is_reply else 0
            input_ids += ids
            labels += ids[:supervised] + [IGNORE] * (len(ids) - supervised)
        return Example(input_ids[: self.max_length], labels[: self.max_length], len(input_ids))

    def _through_stop(self, ids: list[int]) -> int:
        """How many of a reply's ids to supervise: through its last stop token, not the line break some templates print after it."""
        for position in range(len(ids) - 1, -1, -1):
            if ids[position] in self._stops:
                return position + 1
        raise TemplateError(
            "the chat template ends a reply without a stop token, so the model would never learn to stop"
        )
