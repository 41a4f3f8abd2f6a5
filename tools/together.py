"""`dvc repro` with several variants at the same time: `python -m tools.together --jobs 3`, or `make repro JOBS=3`.

`dvc repro` runs one stage after another. Much of a full-size study is not the GPU's time: imports, loading, and data that
processor cores make. So where a GPU has memory for several trainings, the variants' stages run next to each other, each
by a `dvc repro` of its own; DVC's locks keep them apart. What is made is the same.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import typer

from abctune.core.errors import UserError, exits_with_one_line
from abctune.core.params import load_params
from tools.command import run_command

SHARED = ("fetch", "fetch-model", "fetch-general")  # with what they need
DATA = ("mix", "format", "split")
REPRO = (sys.executable, "-m", "dvc", "--wait-for-lock", "repro")
Chain = Sequence[str]  # stages of which each needs the one before


@exits_with_one_line
def main(
    jobs: Annotated[int, typer.Option(min=1, help="how many stages run at the same time")] = 3,
    data: Annotated[bool, typer.Option("--data", help="only make the data, which needs no GPU")] = False,
) -> None:
    """Make what variants share, then the variants' stages together, then what is left."""
    variants, together = list(load_params().variants), Together(jobs)
    repro(*SHARED)
    for stage in DATA:
        together.run([(f"{stage}@{variant}",) for variant in variants])
    if data:
        return
    models = [(f"train@{variant}", f"eval@{variant}", f"collect@{variant}") for variant in variants]
    together.run([*models, ("eval-base",)])
    repro()


def repro(*targets: str) -> None:
    """`dvc repro` of some stages and what they need, or of all."""
    if subprocess.run((*REPRO, *targets)).returncode:
        raise _failure(" ".join(["dvc repro", *targets]))


def _failure(what: str) -> UserError:
    return UserError(f"{what} failed; see above. What has ended is kept: the same command goes on from there")


class Together:
    """Runs chains, at most `jobs` at the same time; each line of output begins with its stage."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._printing = threading.Lock()

    def run(self, chains: Sequence[Chain]) -> None:
        """Run all chains to their ends; what their stages need has been made.

        Raises:
            UserError: a stage failed. The other chains have run to their ends.
        """
        with ThreadPoolExecutor(self._jobs) as pool:
            try:
                ended = list(pool.map(self._chain, chains))
            except KeyboardInterrupt:  # what runs has had it too, and a training saves a checkpoint
                pool.shutdown(cancel_futures=True)
                raise
        if failed := [stage for stage in ended if stage]:
            raise _failure(", ".join(failed))

    def _chain(self, chain: Chain) -> str | None:
        """The first stage that failed, after which the chain's others do not run; None if none did."""
        return next((stage for stage in chain if self._stage(stage)), None)

    def _stage(self, stage: str) -> int:
        """Run a stage, and print its output line by line; its exit status."""
        command = (*REPRO, "--single-item", stage)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert process.stdout is not None
        with process, process.stdout:
            for line in process.stdout:
                # Of a progress bar, which rewrites its line, the last state.
                text = line.decode(errors="replace").rstrip().rpartition("\r")[2]
                with self._printing:
                    print(f"{stage}: {text}", flush=True)
        return process.returncode


if __name__ == "__main__":
    run_command(main)
