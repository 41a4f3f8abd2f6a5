"""Serves requests in the order in which they come, as many at a time as the engine takes, and streams their answers."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from app.context import Prompt, fit, fit_text
from app.engines import Engine, Job, Piece, TokenScore
from app.engines.loading import LoadingEngine
from app.grammar import Follower
from app.models import Models
from app.request import MAX_LIKELIEST, Refused, Request, draw_seeds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("app")
WAITING = 16  # requests in the queue behind the one being answered; a CPU answers them in a minute or two
ANSWER_SECONDS = 120.0  # after which an answer is cut, so that the queue moves on
SHOW_SECONDS = (
    0.05  # between two updates of an answer that is being written; more often costs more than it shows
)
POLL_SECONDS = 0.2  # while in the queue; also how long a canceled call may stay in it
BUSY = "Too many people are asking at once. Nothing is lost: try again in a minute."
FAILED = "The model could not answer. The reason is in the log of the terminal that runs the demo."


@dataclass
class Reply:
    """An answer so far."""

    request: Request
    dropped: int  # messages that did not fit the context
    n_prompt: int
    raw: str = ""  # all that the model wrote; `text` is this without the white space around it
    n_tokens: int = 0
    first_token_seconds: float | None = None
    seconds: float = 0.0
    finish: str | None = None  # stop: the model ended it; length; time. None: still being written, or stopped
    scores: list[TokenScore] = field(default_factory=list)  # of each token, where the request asks for them
    # Other answers were computed in one batch with this one, so that the last digits of its scores may be others than
    # alone: a greedy answer may then differ in a near tie.
    shared_batch: bool = False
    # Tokens of the prompt that an earlier answer has left computed: those that it generated were computed one by one, which
    # rounds otherwise than reading them together.
    cached_tokens: int = 0

    @property
    def text(self) -> str:
        """The answer so far. What is in it stays in it: later texts begin with earlier ones."""
        return self.raw[: len(self.raw) - self._held_back()].strip()

    def add(self, text: str) -> None:
        """Append what the model wrote; a stop string ends the answer before it."""
        self.raw += text
        found = [place for stop in self.request.stop if (place := self.raw.find(stop)) >= 0]
        if found:
            self.raw, self.finish = self.raw[: min(found)], "stop"

    def _held_back(self) -> int:
        """Characters at the end that may be the beginning of a stop string."""
        if self.finish is not None:
            return 0
        sizes = (
            size
            for stop in self.request.stop
            for size in range(1, len(stop))
            if self.raw.endswith(stop[:size])
        )
        return max(sizes, default=0)

    @property
    def tokens_per_second(self) -> float | None:
        """Of the tokens after the first, whose time is the prompt's."""
        if self.first_token_seconds is None or self.n_tokens < 2:
            return None
        return (self.n_tokens - 1) / max(self.seconds - self.first_token_seconds, 1e-9)


@dataclass(frozen=True)
class Waiting:
    """A request that is in the queue, or waits for the models to be loaded."""

    ahead: int
    loading: float | None = None  # seconds since loading began, until it is done


@dataclass(eq=False)
class Ticket:
    """A caller's entry in the queue, and how many answers it is for."""

    size: int


class RequestQueue:
    """A first-in, first-out queue that serves `n_parallel` answers at a time, with a limit on how many wait."""

    def __init__(self, waiting: int, n_parallel: int = 1) -> None:
        self._limit, self._n_parallel = waiting, n_parallel
        self._tickets: list[Ticket] = []
        self._changed = threading.Condition()

    @contextmanager
    def place(self, size: int = 1) -> Iterator[Ticket]:
        """Enter the queue; the block holds the entry, and then the place, until it ends.

        Raises:
            Refused: the queue is full.
        """
        ticket = Ticket(size)
        with self._changed:
            self._tickets.append(ticket)
            if len(self._tickets) - self._served() > self._limit:
                self._tickets.pop()
                raise Refused(BUSY)
        try:
            yield ticket
        finally:
            with self._changed:
                self._tickets.remove(ticket)
                self._changed.notify_all()

    def ahead(self, ticket: Ticket, timeout: float) -> int:
        """How many must go before the ticket is served; waits up to `timeout` seconds for that to become 0."""

        def left() -> int:
            """How many places the ticket still has to move up."""
            return max(0, self._tickets.index(ticket) - self._served() + 1)

        with self._changed:
            self._changed.wait_for(lambda: left() == 0, timeout)
            return left()

    def _served(self) -> int:
        """How many entries from the head of the queue are being served: nobody overtakes, and the first always is."""
        taken = 0
        for count, ticket in enumerate(self._tickets):
            taken += ticket.size
            if count and taken > self._n_parallel:
                return count
        return len(self._tickets)


class Service:
    """Answers requests, as many at a time as the engine takes.

    A request holds its place for the whole generation, not for the choice of adapter alone: PEFT's `set_adapter` from two
    threads answered with the wrong adapter in 30 of 40 calls.
    """

    def __init__(
        self,
        models: Models,
        engine: Engine,
        tokenizer: PreTrainedTokenizerBase | None = None,
        waiting: int = WAITING,
    ) -> None:
        """`tokenizer`: None means the engine's own."""
        self.models, self.engine, self._tokenizer = models, engine, tokenizer
        self._queue = RequestQueue(waiting, engine.n_parallel)

    def answer(self, requests: Sequence[Request]) -> Generator[Waiting | list[Reply]]:
        """Yield positions in the queue, then the same replies again and again with more text; closing it stops them.

        Several requests are answered together: a comparison is one call with a request per model.

        Raises:
            Refused: a prompt does not fit, the queue is full, or the engine failed (the reason goes to the log).
        """
        with self._queue.place(len(requests)) as ticket:
            yield from self._until_loaded()  # prompts are read by the engine's tokenizer
            replies, jobs = self._prepare(requests)
            yield from self._until_served(ticket)
            pieces = self.engine.stream(jobs)
            try:
                yield from _stream(replies, pieces)
            except Refused:
                raise
            except Exception:
                log.exception("generation failed")
                raise Refused(FAILED) from None
            finally:
                pieces.close()

    def token_scores(
        self, request: Request, answer: str, likeliest: int = 5
    ) -> Generator[Waiting | list[TokenScore]]:
        """How likely each token of an answer was, and what was likelier. Scores an answer that is there already.

        Args:
            request: what was asked; `Reply.request` of the answer.
            answer: the answer's text; `Reply.raw`, or what is left of it, or any other text.
            likeliest: alternatives per token, at most MAX_LIKELIEST.

        Yields:
            Positions in the queue, then the scores so far, a token more each time; closing it stops.

        Raises:
            Refused: as `answer` does, or the answer does not fit the context after its prompt.
        """
        if not 0 <= likeliest <= MAX_LIKELIEST:
            raise Refused(f"likeliest: at most {MAX_LIKELIEST} alternatives per token")
        with self._queue.place() as ticket:
            yield from self._until_loaded()
            prompt = self._prompt(request)
            ids = self.tokenizer.encode(answer, add_special_tokens=False)
            if len(prompt.ids) + len(ids) > self.engine.context:
                raise Refused(
                    f"the answer is too long: with its prompt it exceeds {self.engine.context:,} tokens"
                )
            job = Job(request.model, prompt.ids, len(ids), request.sampling)
            yield from self._until_served(ticket)
            scores: list[TokenScore] = []
            try:
                for score in self.engine.score(job, ids, likeliest):
                    scores.append(score)
                    yield scores
            except Exception:
                log.exception("scoring failed")
                raise Refused(FAILED) from None

    def _until_served(self, ticket: Ticket) -> Iterator[Waiting]:
        while ahead := self._queue.ahead(ticket, POLL_SECONDS):
            yield Waiting(ahead)

    def _until_loaded(self) -> Iterator[Waiting]:
        if isinstance(self.engine, LoadingEngine):
            while not self.engine.ready(POLL_SECONDS):
                yield Waiting(0, loading=self.engine.waited())

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Waits for the engine, where that is still being loaded."""
        return self.engine.tokenizer if self._tokenizer is None else self._tokenizer

    def _prepare(self, requests: Sequence[Request]) -> tuple[list[Reply], list[Job]]:
        replies, jobs = [], []
        for request in draw_seeds(requests):
            if request.grammar is not None and not self.engine.grammars:
                raise Refused(f"grammars and response formats are not supported by {self.engine.name}")
            prompt = self._prompt(request)
            replies.append(Reply(request, prompt.dropped, len(prompt.ids)))
            jobs.append(
                Job(
                    request.model,
                    prompt.ids,
                    prompt.max_new_tokens,
                    request.sampling,
                    request.likeliest,
                    request.grammar,
                    by_token=bool(request.stop),
                )
            )
        return replies, jobs

    def _prompt(self, request: Request) -> Prompt:
        wanted = request.sampling.max_new_tokens
        if request.prompt is not None:
            return fit_text(self.tokenizer, request.prompt, wanted, self.engine.context)
        return fit(self.tokenizer, request.messages, wanted, self.engine.context)


def _stream(replies: list[Reply], pieces: Iterator[Piece]) -> Iterator[list[Reply]]:
    started, shown = time.perf_counter(), 0.0
    # Whose first words were shown. Those are not held back: the next piece may take seconds.
    speaking: set[int] = set()
    begun: dict[int, float] = {}  # an engine announces each job with an empty piece when it begins it
    followers = {place: Follower(reply.request.grammar) for place, reply in enumerate(replies)}
    for piece in pieces:
        now, reply = time.perf_counter(), replies[piece.index]
        if reply.finish == "stop":  # at a stop string, of which the engine does not know
            continue
        followers[piece.index].read(piece.text, ended=piece.finish == "stop")
        reply.add(piece.text)
        reply.n_tokens, reply.seconds = piece.n_tokens, now - begun.setdefault(piece.index, now)
        if reply.finish != "stop":  # what follows a stop string is no part of the answer
            reply.scores += piece.scores
        reply.shared_batch |= piece.shared
        reply.cached_tokens = max(reply.cached_tokens, piece.cached_tokens)
        if piece.text and reply.first_token_seconds is None:
            reply.first_token_seconds = reply.seconds
        reply.finish = piece.finish or reply.finish
        if all(one.finish for one in replies):
            break
        if now - started > ANSWER_SECONDS * len(replies):
            for late in replies:
                late.finish = late.finish or "time"
            break
        first_words = piece.index not in speaking and bool(reply.text)
        if first_words:
            speaking.add(piece.index)
        if first_words or now - shown >= SHOW_SECONDS:
            shown = now
            yield replies
    yield replies
