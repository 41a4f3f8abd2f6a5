"""Several replicates at the same time where there is no GPU: each in a process of its own, on its share of the cores.

A step of a small model gains a tenth from a second thread; a second process trains twice as much (docs/performance.md).
The adapters are the same to the bit: every replicate has its own seed, checkpoints and files.

On Linux the stage imports the libraries once, which takes as long as some steps, and the processes are forks of it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import psutil

from abctune.core.errors import UserError
from abctune.core.parallel import end_with
from abctune.core.params import Params
from abctune.core.places import BASE_MODEL
from abctune.llm.tokenizer import load_tokenizer
from abctune.llm.weights import weight_bytes
from stages.train.processes import STOPS, answering_stops
from stages.train.publish import Finished
from stages.train.recipe import Replicate, Run
from stages.train.sharding import base_of

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

# Of a process next to its base model in float32: imports 1 GiB, and what a step of some hundred tokens takes.
WORKING_BYTES = 3 * 2**30
# Elsewhere than on Linux each process starts anew and imports for itself: macOS's own libraries may crash in a fork.
FORKS = sys.platform == "linux"
# Niceness of those that do not evaluate while they train: the one that does has more to do, and would go on alone.
GIVING_WAY = 5


def workers_for(run: Run) -> int:
    """How many of a run's replicates train at the same time.

    One where there is a GPU, which a single training fills, where torchrun has started this process, or where torch may
    use one thread (OMP_NUM_THREADS, or the cores). Else all of them if the free memory holds that, even on fewer cores:
    three on two cores end sooner than two and then one. Else one for each core, or as many as fit.
    """
    import torch

    count, cores = len(run.replicates), torch.get_num_threads()
    if torch.cuda.is_available() or "RANK" in os.environ or cores == 1:
        return 1
    room = psutil.virtual_memory().available // (weight_bytes(BASE_MODEL, bytes_each=4) + WORKING_BYTES)
    return count if count <= room else max(1, min(cores, room))


def train_in_workers(run: Run, params: Params, workers: int, started: float) -> list[Finished]:
    """Every replicate's adapter and record, in the replicates' order.

    Args:
        started: time.perf_counter() at the start of this process.

    Raises:
        UserError: a training failed or was stopped; the others have saved a checkpoint too.
    """
    import torch

    threads = torch.get_num_threads()
    context = multiprocessing.get_context("fork" if FORKS else "spawn")
    if FORKS:
        # A fork has none of the threads of a pool that has begun, and would wait for them.
        torch.set_num_threads(1)
        _import_libraries(run)
    setup = (os.getpid(), max(1, threads // workers), context.Value("i", 0), started)
    upcoming = iter(run.replicates)
    with (
        ProcessPoolExecutor(workers, context, initializer=_begin, initargs=setup) as pool,
        _passing_on_signals() as caught,
    ):

        def start(count: int) -> set[Future[Finished]]:
            return {pool.submit(_train_one, run, params, one) for one in islice(upcoming, count)}

        # Held back until each process has handlers of its own: a fork would answer a signal with this one's, and go on.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        try:
            running, done = start(workers), set[Future[Finished]]()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        while running:
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            done |= ended
            if caught or any(one.exception() for one in ended):
                if not caught:
                    _signal_workers(signal.SIGTERM)  # which lets them save what they have
                done |= wait(running).done
                raise _why_ended(done, run.variant, caught)
            running |= start(len(ended))
    return sorted((one.result() for one in done), key=lambda one: one.number)


def _why_ended(done: set[Future[Finished]], variant: str, caught: list[int]) -> BaseException:
    """The error to end with: that of the training that failed, not one caused by stopping the others."""
    errors = [error for one in done if (error := one.exception())]
    others = [error for error in errors if not isinstance(error, BrokenProcessPool)]
    if others and not caught:
        # The first to fail; the message of one that was stopped because of it says so.
        return min(others, key=lambda error: "stopped by" in str(error))
    if others:  # rather one that tells its step
        return min(others, key=lambda error: "before the first step" in str(error))
    again = f"`dvc repro train@{variant}` goes on from the last checkpoints"
    if caught:
        return UserError(f"stopped by {signal.Signals(caught[0]).name}; {again}")
    return UserError(
        f"a process that trained a replicate of {variant} was killed, perhaps for want of memory; {again}, and "
        "OMP_NUM_THREADS=1 before it trains one replicate at a time"
    )


def _signal_workers(number: int) -> None:
    for child in multiprocessing.active_children():
        with suppress(ProcessLookupError):
            os.kill(child.pid or 0, number)


@contextmanager
def _passing_on_signals() -> Iterator[list[int]]:
    """Let SIGTERM and Ctrl-C reach the workers, which save a checkpoint; yields a list of those that have come."""
    caught: list[int] = []

    def pass_on(number: int, _frame: Any) -> None:
        caught.append(number)
        _signal_workers(number)

    with answering_stops(pass_on):
        yield caught


# This process's own. The stage writes `_base` alone, before it forks, and each worker inherits it; the others are
# written by the worker that they are about.
_base: Any = None  # the base model that this process trains on; its weights are loaded by the first training
_started: float | None = None  # the stage's start, until a replicate has been charged with it
_busy = False  # whether it has a replicate to train
_stopped_by: int | None = None  # the signal that came before it had one


def _import_libraries(run: Run) -> None:
    """Unsloth or transformers, and what trains with them. No weights yet."""
    global _base
    if _base is None:
        _base = base_of(run)  # first: it imports Unsloth, which has to come before transformers
    import stages.train.fit  # noqa: F401


def _begin(parent: int, threads: int, slots: Synchronized[int], started: float) -> None:
    global _started
    _started = started
    os.setpgid(0, 0)  # Ctrl-C reaches the stage alone, which passes it on: twice would end a training at once
    end_with(parent)
    for number in STOPS:
        signal.signal(number, _stop_before_training)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # before torch is imported, where this is no fork
    import torch

    torch.set_num_threads(threads)
    with slots.get_lock():
        os.environ["TQDM_POSITION"] = str(slots.value)  # one progress bar below the other
        slots.value += 1


def _stop_before_training(number: int, _frame: Any) -> None:
    """Answer a signal while imports run; while a replicate trains, stages.train.resume does.

    A worker without work stays: its death would break the pool, which then kills those that are saving a checkpoint.
    """
    global _stopped_by
    _stopped_by = number
    if _busy:
        _end_if_stopped()


def _end_if_stopped() -> None:
    if _stopped_by:
        raise UserError(f"stopped by {signal.Signals(_stopped_by).name} before the first step")


def _train_one(run: Run, params: Params, replicate: Replicate) -> Finished:
    global _busy
    _busy = True
    try:
        _end_if_stopped()
        return _trained(run, params, replicate)
    finally:
        _busy = False


def _trained(run: Run, params: Params, replicate: Replicate) -> Finished:
    global _started
    started, _started = _started or time.perf_counter(), None
    if run.recipe.eval_steps and not run.recipe_of(replicate).eval_steps:
        os.nice(GIVING_WAY)
    _import_libraries(run)
    from stages.train.fit import train_replicates

    tokenizer = load_tokenizer(**params.active.model.template)
    (finished,) = train_replicates(replace(run, replicates=(replicate,)), params, tokenizer, _base, started)
    return finished
