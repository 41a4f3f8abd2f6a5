"""What generates the answers: two engines with one small interface.

- `llama_cpp`: llama.cpp with the base as GGUF and each adapter as a GGUF LoRA; the fast one on a CPU.
- `transformers_engine`: transformers + PEFT, for a GPU and for a base that has no GGUF.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from app.request import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Job:
    """One answer to generate."""

    model: str
    prompt: list[int]
    max_new_tokens: int
    sampling: Sampling
    likeliest: int | None = None  # report each token's score, and this many alternatives
    grammar: str | None = None  # GBNF that the answer keeps to; for an engine that takes grammars
    # Hand out each token by itself: what follows a stop string is told apart by pieces.
    by_token: bool = False


@dataclass(frozen=True)
class Likely:
    """A token that could come next."""

    id: int
    text: str
    logprob: (
        float  # natural logarithm of its probability: by the plain scores, before temperature and penalties
    )


@dataclass(frozen=True)
class TokenScore(Likely):
    """A token of an answer, and what the model would most likely have said in its place."""

    likeliest: tuple[Likely, ...] = ()  # likeliest first; holds the token itself if it is among them


@dataclass(frozen=True)
class Piece:
    """What came out next for the job at `index`."""

    index: int
    text: str
    n_tokens: int  # generated so far
    finish: Literal["stop", "length"] | None = None  # set on the job's last piece
    scores: tuple[TokenScore, ...] = ()  # of the tokens that are new, where the job asks for them
    shared: bool = False  # other answers have been computed in one batch with this one
    cached_tokens: int = 0  # tokens of the prompt that an earlier answer has left computed


class Engine(Protocol):
    """Used by at most `n_parallel` callers at a time (app.service sees to that).

    A stream announces each job with an empty piece when it begins with it. Closing the iterator ends the
    generation.
    """

    name: str
    context: int
    n_parallel: int  # jobs that it takes at a time; a caller with more is served alone
    grammars: bool  # whether it can keep an answer to a grammar

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base's, with the study's chat template."""
        ...

    def stream(self, jobs: Sequence[Job]) -> Generator[Piece]:
        """Answer the jobs, each a piece at a time."""
        ...

    def score(self, job: Job, ids: Sequence[int], likeliest: int) -> Iterator[TokenScore]:
        """Score the tokens `ids` as the answer to the job's prompt, one after the other."""
        ...
