"""Time and memory of one command, and of the stages of a `dvc repro`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

ROOT = Path(__file__).parent.parent
STAGE = re.compile(r"Running stage '([^']+)'")
# Of a project that is made for a benchmark.
GIT_IDENTITY = {f"GIT_{who}_{what}": "b@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
PREFIX = re.compile(r"([\w-]+(?:@\w+)?): ")  # of a line of tools.together


def finding_project(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a Python that finds the project's packages from any folder, besides those that it found before."""
    paths = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(paths)}


class Used(NamedTuple):
    status: int  # 0: the command succeeded
    seconds: float
    peak_rss_gib: float  # of the process or of a child, the largest
    peak_pss_gib: (
        float  # of all its processes at one time, pages that they share counted once; looked at every 0.1 s
    )
    cpu_seconds: float  # of all cores, which a busy machine changes least


def run_measured(command: list[str], cwd: Path, **popen: Any) -> Used:
    """Run a command to its end in a folder; `popen` goes to subprocess.Popen."""
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=cwd, **popen)
    ended, seen = threading.Event(), [0]

    def watch() -> None:
        while not ended.wait(0.1):
            seen.append(_pss(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, status, usage = os.wait4(process.pid, 0)
    seconds, cpu = time.perf_counter() - started, usage.ru_utime + usage.ru_stime
    ended.set()
    watcher.join()
    return Used(status, seconds, usage.ru_maxrss * 1024 / 2**30, max(seen) / 2**30, cpu)


def _pss(root: int) -> int:
    """Bytes of a process and all that come from it, each shared page counted once."""
    total = 0
    try:
        parent = psutil.Process(root)
        processes = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in processes:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied, OSError):
            total += process.memory_full_info().pss
    return total


def run_repro(
    folder: Path,
    seconds: dict[str, float],
    *arguments: str,
    save: Callable[[], None] = lambda: None,
    **environment: str,
) -> int:
    """Run `dvc repro`, add each stage's seconds to `seconds` by the line that begins it; the exit status.

    What comes before the first stage is counted as `dvc`. `save` is called after each line, so that a run that is
    stopped leaves what it has measured.
    """
    process = _printing([sys.executable, "-m", "dvc", "repro", *arguments], folder, environment)
    stage, since = "dvc", time.perf_counter()
    for line in process.stdout or ():
        print(line, end="", flush=True)
        now = time.perf_counter()
        seconds[stage] = round(seconds.get(stage, 0.0) + now - since, 2)
        since = now
        save()
        if match := STAGE.search(line):
            stage = match[1]
    status = process.wait()
    seconds[stage] = round(seconds.get(stage, 0.0) + time.perf_counter() - since, 2)
    return status


def run_together(
    folder: Path,
    spans: dict[str, list[float]],
    *arguments: str,
    begin: float,
    save: Callable[[], None],
    **environment: str,
) -> int:
    """Run `tools.together`, and note when each stage began and ended, in seconds from `begin`; the exit status.

    A stage ends with its last line. `save` is called after each line, as by `run_repro`.
    """
    process = _printing([sys.executable, "-m", "tools.together", *arguments], folder, environment)
    running: dict[str, str] = {}  # {prefix of a line: the stage that prints it}
    for line in process.stdout or ():
        print(line, end="", flush=True)
        now = round(time.perf_counter() - begin, 1)
        prefix = found[1] if (found := PREFIX.match(line)) else ""
        if match := STAGE.search(line):
            running[prefix] = match[1]
            spans[match[1]] = [now, now]
        elif prefix in running:
            spans[running[prefix]][1] = now
        save()
    return process.wait()


def _printing(command: list[str], folder: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start a command whose lines are read as they come, and whose stages run by this Python."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "NO_COLOR": "1", "PYTHONUNBUFFERED": "1", "PATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
