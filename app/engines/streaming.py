"""Text of an answer that is generated token by token: what no later token changes is handed out."""

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
    shown: int = 0  # characters handed out
    finish: Literal["stop", "length"] | None = None
    # Decodes the newest tokens alone: decoding the whole answer at every token takes time quadratic in its length.
    decoder: DecodeStream = field(default_factory=lambda: DecodeStream(skip_special_tokens=True))

    def take(self, index: int, token: int, tokenizer: PreTrainedTokenizerBase, stops: bool) -> Piece | None:
        """Add a token; what became certain with it, if any.

        Args:
            index: the job's place among those generated together.
            stops: the token is one that ends an answer.
        """
        new = ""
        if stops:
            self.finish = "stop"
        else:
            self.ids.append(token)
            if len(self.ids) >= self.job.max_new_tokens:
                self.finish = "length"
            # Nothing in the middle of a character: the next token completes it.
            new = self.decoder.step(tokenizer.backend_tokenizer, token) or ""
        self.shown += len(new)
        if self.finish:  # with half a character at the end, which nothing will complete
            new += tokenizer.decode(self.ids, skip_special_tokens=True)[self.shown :]
        return Piece(index, new, len(self.ids), self.finish) if new or self.finish else None
