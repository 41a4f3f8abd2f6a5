"""One training by several processes, on one machine or several: torchrun starts them, one sum a step joins them.

    PET_NPROC_PER_NODE=4 dvc repro train@B

Every process draws the whole of each step's conversations and works on its share; their gradients are summed, so
that the step is the one that a single process takes. The Trainer in each of them knows nothing of the others: it
sees one process with one GPU. The first process alone writes anything.

Instead of DDP, because the shares' numbers of micro-batches differ, a step is redone where one process runs out of
memory, and a LoRA gradient is small (97 MB for Llama-3.2-3B at r 16): nothing is gained by sending it piecemeal.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from abctune.core.errors import UserError

if TYPE_CHECKING:  # torch takes seconds to import, and CUDA_VISIBLE_DEVICES must be set before
    import torch

T = TypeVar("T")
# torchrun's own variables (each of its options is read from PET_<OPTION>) that ask for more than this process.
ASKING = ("PET_NPROC_PER_NODE", "PET_NNODES")
# What torchrun tells a process; taken out of the environment, where accelerate and Unsloth would act on it.
TORCHRUN_VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "ROLE_RANK",
)
TIMEOUT = timedelta(minutes=10)  # for a process that is slower to load, evaluates, or writes a checkpoint
FIRST_ONES_TURN = (
    3  # seconds that others leave the first process to say what is wrong, if it is wrong there too
)
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
    # A port that is free, so that two variants can train beside each other.
    arguments = parse_args([*(["--standalone"] if alone else []), "--module", "stages.train", variant])
    here = determine_local_world_size(arguments.nproc_per_node)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // here)))
    logging.disable(logging.CRITICAL)  # torchrun's own account of what is said below in one line
    try:
        run(arguments)
    except ChildFailedError as failed:
        _explain(variant, failed)
    except SignalException as stopped:
        raise SystemExit(128 + stopped.sigval) from None  # the first process has said what it saved


def _explain(variant: str, failed: Any) -> None:
    """End with one line on the failure that came first; the first process has printed its own."""
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


class Processes:
    """This process's place among those of the training."""

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank = rank
        self.world = world
        self._store: Any = None
        self._replicate = 1
        self._connected = False

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def require_work(self, variant: str, conversations: int) -> None:
        """Refuse more processes than a step has conversations: some would never have any."""
        if conversations < self.world:
            raise UserError(
                f"{self.world} processes, but a step of {variant} has {conversations} conversations "
                "(per_device_train_batch_size x gradient_accumulation_steps in params.yaml); start fewer processes"
            )

    def share(self, items: Sequence[T], sizes: Sequence[int]) -> list[T]:
        """This process's part of a step's items: about as much as any other's, and always the same for one `sizes`."""
        if self.world == 1:
            return list(items)
        owners, loads = [0] * len(items), [0] * self.world
        for index in sorted(range(len(items)), key=lambda index: (-sizes[index], index)):
            owners[index] = loads.index(min(loads))
            loads[owners[index]] += sizes[index]
        return [item for item, owner in zip(items, owners, strict=True) if owner == self.rank]

    def begin(self, replicate: int) -> None:
        """Start a replicate: keys of the store carry its number from here on."""
        self._replicate = replicate

    def broadcast(self, name: str, value: Any) -> None:
        """Send a value, as JSON, to every other rank; the main rank calls it."""
        if self.world > 1:
            self._rendezvous_store().set(f"{self._replicate}/{name}", json.dumps(value))

    def receive(self, name: str) -> Any:
        """The value that the main rank broadcasts under `name`; waits for it."""
        with _unless_lost():
            return json.loads(self._rendezvous_store().get(f"{self._replicate}/{name}"))

    def ready(self, problem: str = "") -> None:
        """Tell the main rank that this one is about to train, or why it cannot."""
        self._rendezvous_store().set(f"{self._replicate}/ready/{self.rank}", problem)

    def wait_for_others(self) -> None:
        """Wait, as the main rank, until all others are `ready`.

        Raises:
            UserError: one of them cannot train.
        """
        for rank in range(1, self.world):
            with _unless_lost():
                problem = self._rendezvous_store().get(f"{self._replicate}/ready/{rank}").decode()
            if problem:
                raise UserError(f"process {rank} cannot train: {problem}")

    def sum_over_all(self, values: torch.Tensor) -> torch.Tensor:
        """Replace `values` by their sum over all processes; also returned."""
        if self.world == 1:
            return values
        import torch.distributed

        with _unless_lost():
            if not self._connected:  # not earlier: libraries look for a process group while they load
                backend = "nccl" if values.is_cuda else "gloo"
                torch.distributed.init_process_group(
                    backend,
                    store=self._rendezvous_store(),
                    rank=self.rank,
                    world_size=self.world,
                    timeout=TIMEOUT,
                )
                self._connected = True
            torch.distributed.all_reduce(values)
            if values.is_cuda:
                torch.cuda.synchronize()  # here, where a lost process is an error of this line
        return values

    def leave(self) -> None:
        """Leave the process group, once all work is done."""
        if self._connected:
            import torch.distributed

            torch.distributed.destroy_process_group()
            self._connected = False

    def _rendezvous_store(self) -> Any:
        if self._store is None:
            from torch.distributed import rendezvous

            place = f"tcp://{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            self._store, _, _ = next(rendezvous(place, self.rank, self.world, timeout=TIMEOUT))
            self._store.set_timeout(TIMEOUT)
        return self._store


@contextmanager
def joined() -> Iterator[Processes]:
    """This process's rank and world, from torchrun's variables; a world of one without them.

    An error of a rank other than the main one goes to torchrun, which shows it once instead of once per process.
    """
    given = {name: os.environ.pop(name) for name in TORCHRUN_VARIABLES if name in os.environ}
    if "RANK" not in given:
        _see_one_gpu(0)  # of several, which the Trainer would share among threads
        yield Processes()
        return
    processes = Processes(int(given["RANK"]), int(given["WORLD_SIZE"]))
    _see_one_gpu(int(given["LOCAL_RANK"]))
    _die_with(os.getppid())
    if processes.is_main:
        yield processes
        processes.leave()
        return
    # Told to stop, the first process finishes the step, for which it needs the others.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    os.environ["UNSLOTH_COMPILE_LOCATION"] = f"unsloth_compiled_cache/{processes.rank}"  # one writer a folder
    try:
        yield processes
        processes.leave()
    except UserError as error:
        _report(str(error))
        with _unless_lost():
            processes.ready(str(error))
        time.sleep(FIRST_ONES_TURN)
        raise SystemExit(1) from None


def _see_one_gpu(local_rank: int) -> None:
    """Leave this process one GPU, before CUDA starts: device 0 is then the right one everywhere."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(index) for index in range(local_rank + 1)]
    if visible != "" and local_rank < len(gpus):
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[local_rank]


def _die_with(parent: int) -> None:
    """Have the kernel end this process when torchrun is gone: killed itself, it can end nobody."""
    if sys.platform == "linux":
        pdeathsig = 1
        ctypes.CDLL(None).prctl(pdeathsig, signal.SIGKILL)
        if os.getppid() != parent:
            raise SystemExit(LOST)


def _report(message: str) -> None:
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        extra = {"timestamp": str(int(time.time()))}
        Path(file).write_text(
            json.dumps({"message": {"message": message, "extraInfo": extra}}), encoding="utf-8"
        )
    else:
        print(f"error: {message}", file=sys.stderr)


@contextmanager
def _unless_lost() -> Iterator[None]:
    """End quietly if the others are gone: torchrun knows which one was first."""
    try:
        yield
    except RuntimeError:  # torch.distributed's DistError and gloo's and NCCL's own
        if os.environ.get("ABCTUNE_DEBUG"):
            raise
        raise SystemExit(LOST) from None
