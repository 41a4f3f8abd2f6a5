"""`dvc repro` with several stages at the same time: `python -m tools.together --jobs 4`, or `make repro JOBS=4`.

`dvc repro` runs one stage after another. Much of a full-size study is not the GPU's time: imports, loading, and data that
processor cores make. So where a GPU has memory for several processes, each stage runs as soon as the stages that it needs
have ended, by a `dvc repro --single-item` of its own; DVC says what needs what, and its locks keep them apart. What is
made is the same.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Set
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from graphlib import TopologicalSorter
from typing import Annotated

import typer

from abctune.core.errors import UserError, exits_with_one_line
from abctune.core.params import load_params
from tools.command import run_command

REPRO = (sys.executable, "-m", "dvc", "--wait-for-lock", "repro")
LAST_OF_DATA = "split"
ALLOCATOR = "PYTORCH_ALLOC_CONF"  # torch's settings of its GPU memory
CONTEXT_SHARE = 0.02  # of a GPU, that each process takes in addition to what torch counts: CUDA's own 0.5 GiB
Graph = Mapping[str, Set[str]]  # {stage: the stages that must have ended before it begins}


@exits_with_one_line
def main(
    jobs: Annotated[int, typer.Option(min=1, max=16, help="how many stages run at the same time")] = 3,
    data: Annotated[bool, typer.Option("--data", help="only make the data, which needs no GPU")] = False,
) -> None:
    """Run every stage that is out of date, several at the same time, each when what it needs is there."""
    load_params()  # a mistake in it is told once, before any stage begins
    graph = stage_graph()
    if data:
        graph = ancestors(graph, {stage for stage in graph if stage.partition("@")[0] == LAST_OF_DATA})
    if jobs > 1:
        os.environ[ALLOCATOR] = with_share(memory_settings(os.environ), jobs)
    if failed := run_graph(graph, jobs, Printer().run_stage):
        raise UserError(
            f"{', '.join(failed)} failed; see above. What has ended is kept: the same command goes on from there"
        )
    print(f"All {len(graph)} stages are up to date.")


def memory_settings(environment: Mapping[str, str]) -> str:
    """The settings of torch's memory that a training would run with; torch ignores the older variable where the newer one is set."""
    on_wsl = "microsoft" in platform.release().lower()  # where expandable segments fail
    usual = "" if on_wsl else "expandable_segments:True"  # which Unsloth sets where there are none
    return environment.get(ALLOCATOR) or environment.get("PYTORCH_CUDA_ALLOC_CONF") or usual


def with_share(settings: str, jobs: int) -> str:
    """The settings of torch's memory, with an equal share of a GPU's memory for each process, unless they set one.

    Each process plans with the memory that it finds free: without shares, two that begin together would both count it.
    """
    if "per_process_memory_fraction" in settings:
        return settings
    return ",".join(filter(None, [settings, f"per_process_memory_fraction:{1 / jobs - CONTEXT_SHARE:.3f}"]))


def stage_graph() -> Graph:
    """dvc.yaml's stages, those of `foreach` as `train@B`. What `dvc add` tracks has no command and is left out.

    Raises:
        UserError: DVC cannot read its files.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            graph = repo.index.graph
            return {
                stage.addressing: {
                    need.addressing for need in graph.successors(stage) if need.cmd and not stage.frozen
                }
                for stage in graph
                if stage.cmd
            }
    except DvcException as error:
        raise UserError(f"dvc.yaml: {error}") from None


def ancestors(graph: Graph, stages: Set[str]) -> Graph:
    """The part of the graph that makes some stages."""
    found, new = set(stages), set(stages)
    while new := {need for stage in new for need in graph[stage]} - found:
        found |= new
    return {stage: graph[stage] for stage in graph if stage in found}


def run_graph(graph: Graph, jobs: int, run: Callable[[str], int]) -> list[str]:
    """Run all stages, at most `jobs` at the same time; those that failed. What needs one of those does not run.

    Args:
        run: runs a stage and returns its exit status.
    """
    waiting, failed = TopologicalSorter(graph), []
    waiting.prepare()
    running: dict[Future[int], str] = {}
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while waiting.is_active():
                running |= {pool.submit(run, stage): stage for stage in waiting.get_ready()}
                if not running:  # what is left needs a stage that failed
                    break
                ended, _ = wait(running, return_when=FIRST_COMPLETED)
                for one in ended:
                    stage = running.pop(one)
                    if one.result():
                        failed.append(stage)
                    else:
                        waiting.done(stage)
        except BaseException:  # among them Ctrl-C, which what runs has had too: a training saves a checkpoint
            pool.shutdown(cancel_futures=True)
            raise
    return failed


class Printer:
    """Runs stages, and prints their output line by line; each line begins with its stage."""

    def __init__(self) -> None:
        self._printing = threading.Lock()

    def run_stage(self, stage: str) -> int:
        """Run a stage, whose needs have been made; its exit status."""
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
