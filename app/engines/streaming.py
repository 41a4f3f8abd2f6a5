"""An answer that grows token by token, and the text that has become certain of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from app.engines import Job, Piece

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class StreamingAnswer:
    """One answer while it grows."""

    job: Job
    ids: list[int] = field(default_factory=list)
    shown: int = 0  # characters handed out
    finish: str | None = None

    def take(self, index: int, token: int, tokenizer: PreTrainedTokenizerBase, stops: bool) -> Piece | None:
        """Add a token; what became certain with it, if any.

        Args:
            index: the job's place among those generated together.
            stops: the token is one that ends an answer.
        """
        if stops:
            self.finish = "stop"
        else:
            self.ids.append(token)
            if len(self.ids) >= self.job.max_new_tokens:
                self.finish = "length"
        text = tokenizer.decode(self.ids, skip_special_tokens=True)
        if text.endswith("\ufffd") and not self.finish:
            return None  # the middle of a character; the next token completes it
        new, self.shown = text[self.shown :], len(text)
        return Piece(index, new, len(self.ids), self.finish) if new or self.finish else None
