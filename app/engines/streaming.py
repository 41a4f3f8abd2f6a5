"""Text of an answer that is generated token by token; text is handed out once no later token can change it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from tokenizers.decoders import DecodeStream

from app.engines import Job, Piece

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class StreamingAnswer:
    """One answer while it is generated."""

    job: Job
    ids: list[int] = field(default_factory=list)
    shown: int = 0  # characters handed out since the last mark
    begun: int = 0  # ids before the end of the last mark
    finish: Literal["stop", "length"] | None = None
    # Decodes the newest tokens alone: decoding the whole answer at every token takes time quadratic in its length.
    decoder: DecodeStream = field(default_factory=lambda: DecodeStream(skip_special_tokens=True))

    def take(
        self, index: int, token: int, tokenizer: PreTrainedTokenizerBase, stops: bool, mark: str | None = None
    ) -> Piece | None:
        """Add a token; return the text that became final with it, if any.

        Args:
            index: the job's place among those generated together.
            stops: whether the token ends an answer.
            mark: the text to show for a special token that is shown.
        """
        new = ""
        if stops:
            self.finish = "stop"
        else:
            self.ids.append(token)
            if len(self.ids) >= self.job.max_new_tokens:
                self.finish = "length"
            if mark:
                return Piece(index, self._marked(mark, tokenizer), len(self.ids), self.finish)
            # Nothing in the middle of a character: the next token completes it.
            new = self.decoder.step(tokenizer.backend_tokenizer, token) or ""
        self.shown += len(new)
        if self.finish:
            new += self._half_character(self.ids, tokenizer)
        return Piece(index, new, len(self.ids), self.finish) if new or self.finish else None

    def _half_character(self, ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
        """What stands at the end, after all that was handed out, and nothing will complete."""
        return tokenizer.decode(ids[self.begun :], skip_special_tokens=True)[self.shown :]

    def _marked(self, mark: str, tokenizer: PreTrainedTokenizerBase) -> str:
        """The text up to a mark, which is the newest token, and the mark; decoding begins anew after it."""
        before = self._half_character(self.ids[:-1], tokenizer)
        self.begun, self.shown = len(self.ids), 0
        self.decoder = DecodeStream(skip_special_tokens=True)
        return before + mark
