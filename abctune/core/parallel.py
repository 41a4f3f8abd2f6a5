"""Work on batches of rows on all cores, the results in the batches' order."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

# Starting the processes takes 1 to 3 s, in which one core works through some thousand rows.
MIN_ROWS = 8_000
# What comes after (deduplication, counting, writing) is one process's work; more than this many wait for it.
MAX_PROCESSES = 8
_work: Callable[[Any], Any] | None = None  # in a worker process: what it does to a batch


def over_batches(
    batches: Iterable[T], start: Callable[[], Callable[[T], R]], rows: int, cores: int | None = None
) -> Iterator[R]:
    """The work's result for each batch; several processes share it where there are many rows.

    Args:
        batches: read as they are needed, so that a few of them are in memory at a time.
        start: makes the work; called once in each process, so it and each batch and result must pickle.
        rows: how many rows all batches have together.
        cores: to use; those of this process by default.
    """
    processes = min(MAX_PROCESSES, cores or len(os.sched_getaffinity(0)))
    if rows < MIN_ROWS or processes == 1:
        yield from map(start(), batches)
        return
    # Not forked: a process that has threads, as Arrow's and the tokenizer's, may hang in its copy.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, initializer=_begin, initargs=(start, os.getpid()))
    try:
        upcoming = iter(batches)
        waiting = deque(pool.submit(_do, batch) for batch in islice(upcoming, processes + 1))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(_do, batch) for batch in islice(upcoming, 1))
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(start: Callable[[], Callable[[Any], Any]], parent: int) -> None:
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the stage, which ends these
    end_with(parent)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the cores are taken
    _work = start()


def _do(batch: Any) -> Any:
    assert _work is not None
    return _work(batch)


def end_with(parent: int, status: int = 1) -> None:
    """Have the kernel end this process when its parent ends: a killed parent cannot end its children itself.

    Args:
        parent: its process id.
        status: to exit with where it is gone already.
    """
    if sys.platform == "linux":
        pdeathsig = 1
        ctypes.CDLL(None).prctl(pdeathsig, signal.SIGKILL)
        if os.getppid() != parent:
            raise SystemExit(status)
