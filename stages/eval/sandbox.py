"""A command on a model's code, isolated (stages/eval/isolate.py) and with limits.

Limits: time, processor time, memory of each process and of all together, the number of processes, the size of files, open files.
It inherits no environment variable, and its output goes nowhere. Where a machine's kernel cannot isolate it, that is an error:
`isolated: false` in params.yaml runs it with limits alone, and then it can read what the user can, and use the network.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from abctune.core.errors import UserError
from stages.eval import isolate

FILE_BYTES = 16 * 2**20  # of one file that the command writes
OPEN_FILES = 64
PROCESSES = 64  # with threads where the user is not root
OWN_MIB = 48  # of the interpreters that wait for the command
LOOK_SECONDS = 0.02  # between looks at its processes
Held = dict[str, bool]


def run(
    command: Sequence[str], files: Mapping[str, str], seconds: float, memory_mib: int, isolated: bool = True
) -> Held:
    """Which limits a command keeps to, and whether it ends with exit status 0.

    Args:
        command: words, without a shell; the word `python` in front is this Python.
        files: name -> text, written into the folder that the command runs in.
        memory_mib: of all its processes together.

    Raises:
        UserError: there is no such command, or this machine cannot isolate it.
    """
    words = [sys.executable if command[0] == "python" else command[0], *command[1:]]
    limits = {
        "CPU": math.ceil(seconds),
        "AS": memory_mib * 2**20,
        "FSIZE": FILE_BYTES,
        "NOFILE": OPEN_FILES,
        "NPROC": PROCESSES,
        "CORE": 0,
    }
    if not isolated:
        del limits["NPROC"]  # it would count the user's other processes
    asked = {"command": words, "limits": limits, "visible": visible(words) if isolated else None}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for name, text in files.items():
            (Path(folder) / name).write_text(text, encoding="utf-8", errors="replace")
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", isolate.__file__, json.dumps(asked)],
            cwd=folder,
            env={"PATH": os.defpath, "HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            held = _watched(process, seconds, memory_mib)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # isolated, all that it started ends with it
            process.wait()
        problem = process.stderr.read().decode() if process.stderr else ""
        if process.stderr:
            process.stderr.close()
    if process.returncode == isolate.NOT_FOUND and problem:
        raise UserError(
            f"params.yaml: evaluation.checks: {problem} in {os.defpath} on this machine; install it, or give its whole path"
        )
    if process.returncode == isolate.CANNOT and problem:
        raise UserError(
            f"params.yaml: evaluation.checks: this machine's kernel cannot isolate the command ({problem}). Run eval where user namespaces"
            " and Landlock are allowed (Linux 5.13 or newer, outside most containers), or set `isolated: false` in the check: then"
            " the code of a model's answers can read your files and use the network"
        )
    return held


def visible(words: Sequence[str]) -> list[str]:
    """What the command may read in addition to the system's programs: this Python, and files that the command names by whole paths."""
    python = {sys.prefix, sys.base_prefix, str(Path(sys.executable).resolve().parent.parent)}
    named = {word for word in words if Path(word).is_absolute() and Path(word).is_file()}
    inside = [path for path in sorted(python) if not path.startswith("/usr")]
    return inside + [
        path for path in sorted(named) if not path.startswith(("/usr/", *(f"{one}/" for one in inside)))
    ]


def _watched(process: subprocess.Popen[bytes], seconds: float, memory_mib: int) -> Held:
    """Wait for the command; stop at the first limit that it breaks."""
    held = {
        "within seconds": True,
        "within memory_mib": True,
        "within processes": True,
        "exit status 0": False,
    }
    until = time.monotonic() + seconds
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return held | {"exit status 0": process.wait(LOOK_SECONDS) == 0}
        count, mib = _used(process.pid)
        broken = {
            "within seconds": time.monotonic() > until,
            "within memory_mib": mib > memory_mib + OWN_MIB,
            "within processes": count > PROCESSES,
        }
        if any(broken.values()):
            return held | {name: not is_broken for name, is_broken in broken.items()}


def _used(pid: int) -> tuple[int, float]:
    """Number and memory, in MiB, of a process and all that come from it."""
    count, size = 0, 0
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for one in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                count, size = count + 1, size + one.memory_info().rss
    return count, size / 2**20
