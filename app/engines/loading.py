"""An engine that is still being loaded: the page is shown before it is ready, and requests wait for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING

from app.engines import Engine, Job, Piece, TokenScore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class LoadingEngine:
    """Loads an engine in a thread of its own, once `begin` is called, and is that engine from then on.

    What is asked of an engine before it answers (name, context, ...) is known before it is loaded.
    """

    def __init__(
        self, name: str, context: int, n_parallel: int, grammars: bool, load: Callable[[], Engine],
        failed: Callable[[BaseException], None],
    ) -> None:  # fmt: skip
        """`failed` is called in the loading thread, with what `load` raised."""
        self.name, self.context, self.n_parallel, self.grammars = name, context, n_parallel, grammars
        self._load, self._failed = load, failed
        self._started, self._ready = time.perf_counter(), threading.Event()
        self._engine: Engine | None = None
        self.seconds: float | None = None  # that loading took

    def begin(self) -> None:
        """Load, in a thread of its own."""
        self._started = time.perf_counter()
        threading.Thread(target=self._run, name="loading", daemon=True).start()

    def _run(self) -> None:
        try:
            self._engine = self._load()
            self.seconds = time.perf_counter() - self._started
            self._ready.set()
        except BaseException as error:  # of any kind: nothing else would report it
            self._failed(error)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The loaded engine's."""
        return self._loaded().tokenizer

    def waited(self) -> float:
        """Seconds since loading began."""
        return time.perf_counter() - self._started

    def ready(self, timeout: float | None = 0.0) -> bool:
        """Whether it is loaded; waits for that up to `timeout` seconds, or as long as it takes."""
        return self._ready.wait(timeout)

    def stream(self, jobs: Sequence[Job]) -> Generator[Piece]:
        """As the loaded engine's."""
        return self._loaded().stream(jobs)

    def score(self, job: Job, ids: Sequence[int], likeliest: int) -> Iterator[TokenScore]:
        """As the loaded engine's."""
        return self._loaded().score(job, ids, likeliest)

    def _loaded(self) -> Engine:
        self._ready.wait()
        assert self._engine is not None
        return self._engine
