"""Several processes train what one process does: torchrun or `accelerate launch` starts them, accelerate joins them.

    PET_NPROC_PER_NODE=4 dvc repro train@B
    accelerate launch --num_processes 4 -m stages.train B

All of them run the same code; the main process alone writes. What accelerate does not do is here: starting the
processes from within a DVC stage, one line on the process that failed, and refusing machines that would train something
else.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from abctune.core.errors import UserError
from abctune.core.parallel import end_with

if TYPE_CHECKING:  # accelerate imports torch, which must not happen before CUDA_VISIBLE_DEVICES is set
    from accelerate import PartialState

T = TypeVar("T")
# torchrun's own variables (each of its options is read from PET_<OPTION>) that ask for more than this process.
ASKING = ("PET_NPROC_PER_NODE", "PET_NNODES")
TIMEOUT = timedelta(minutes=10)  # for a process that is slower to load, evaluates, or writes a checkpoint
# Seconds that the other processes leave the main one to say what is wrong, if it is wrong there too.
MAIN_FIRST = 3
STOPS = (signal.SIGTERM, signal.SIGINT)
LOST = 75  # exit status of a process that ended because another one had


def wanted() -> bool:
    """Whether this process is to start the training's processes rather than to be one."""
    return "RANK" not in os.environ and any(os.environ.get(name) for name in ASKING)


def launch(variant: str) -> None:
    """Train in several processes and wait for them.

    Raises:
        UserError: one of them failed, which has ended all.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import determine_local_world_size, parse_args, run

    alone = os.environ.get("PET_NNODES", "1") == "1"
    # A port that is free, so that two variants can train at the same time.
    arguments = parse_args([*(["--standalone"] if alone else []), "--module", "stages.train", variant])
    here = determine_local_world_size(arguments.nproc_per_node)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // here)))
    logging.disable(logging.CRITICAL)  # torchrun's own account of what is said below in one line
    try:
        run(arguments)
    except ChildFailedError as failed:
        _explain(variant, failed)
    except SignalException as stopped:
        raise SystemExit(128 + stopped.sigval) from None  # the main process has said what it saved


def _explain(variant: str, failed: Any) -> None:
    """End with one line on the failure that came first; the main process has printed its own."""
    print(file=sys.stderr)  # below the progress bar
    first = failed.failures.get(0)
    if first and 0 < first.exitcode != LOST:
        raise SystemExit(first.exitcode)
    rank, failure = failed.get_first_failure()
    if failure.exitcode < 0:
        how = f"was killed by {failure.signal_name()}"
    elif failure.exitcode == LOST:
        how = "lost the connection to another one"
    else:
        message = failure.message
        how = f"cannot train: {message if isinstance(message, str) else message['message']}"
    raise UserError(
        f"process {rank} of {variant}'s training {how}; the others were ended too. `dvc repro train@{variant}` goes on"
        " from the last checkpoint"
    )


def world_size() -> int:
    """How many processes the training has, as the launcher says; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return os.environ.get("RANK", "0") == "0"


def require_work(variant: str, conversations: int) -> None:
    """Refuse more processes than a step has conversations: some would never have any."""
    if conversations < world_size():
        raise UserError(
            f"{world_size()} processes, but a step of {variant} has {conversations} conversations "
            "(per_device_train_batch_size x gradient_accumulation_steps in params.yaml); start fewer processes"
        )


@contextmanager
def joined() -> Iterator[None]:
    """Be one of the training's processes: end when the launcher or another process does, and leave at the end.

    An error of a process other than the main one goes to torchrun, which shows it once instead of once per process.
    """
    if "RANK" not in os.environ:
        _see_one_gpu()  # of several, which the Trainer would share among threads
        yield
        return
    end_with(os.getppid(), LOST)
    try:
        yield
        process_state().destroy_process_group()
    except UserError as error:
        if is_main():
            raise
        _report(str(error))
        time.sleep(MAIN_FIRST)
        raise SystemExit(1) from None
    except RuntimeError as error:
        if not _is_loss(error) or os.environ.get("ABCTUNE_DEBUG"):
            raise
        raise SystemExit(LOST) from None  # without a message: the launcher knows which one failed first


def process_state() -> PartialState:
    """The state that accelerate keeps of this process; the first call connects it to the others."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available(), timeout=TIMEOUT)


def from_main(work: Callable[[], T]) -> T:
    """What `work` returns in the main process, in every process; only the main one calls it."""
    from accelerate.utils import broadcast_object_list

    found: list[Any] = [work() if process_state().is_main_process else None]
    broadcast_object_list(found)
    return found[0]  # type: ignore[no-any-return]


def agree(problem: str | None) -> None:
    """Continue only if no process has a problem; every process calls this.

    Raises:
        UserError: in every process, the first problem and whose it is.
    """
    from accelerate.utils import gather_object

    process_state()
    for rank, found in enumerate(gather_object([problem])):
        if found:
            raise UserError(f"process {rank} cannot train: {found}")


@contextmanager
def answering_stops(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Let `handler` answer SIGTERM and Ctrl-C while the block runs."""
    # A background job of a shell is started with Ctrl-C ignored, and so it stays.
    numbers = [one for one in STOPS if signal.getsignal(one) is not signal.SIG_IGN]
    before = {one: signal.signal(one, handler) for one in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _see_one_gpu() -> None:
    """Leave this process one GPU, before CUDA starts."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible != "":
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[0] if visible else "0"


def _report(message: str) -> None:
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        extra = {"timestamp": str(int(time.time()))}
        Path(file).write_text(
            json.dumps({"message": {"message": message, "extraInfo": extra}}), encoding="utf-8"
        )
    else:
        print(f"error: {message}", file=sys.stderr)


def _is_loss(error: RuntimeError) -> bool:
    """Whether an error says that another process is gone: of torch.distributed, or as gloo and NCCL put it."""
    from torch.distributed import DistError

    said = str(error)
    return isinstance(error, DistError) or any(
        word in said for word in ("gloo", "NCCL", "Connection closed", "Connection reset")
    )
