"""A command on a model's code, in a process of its own with limits.

What it limits: time, processor time, memory, the size of files, open files; it inherits no environment variable, works
in a temporary folder, and its process group is ended. What it does NOT protect against: the command runs as the user
who runs the stage. Code can read what that user can read, write outside the folder, use the network, and start
processes that leave the group. Check models whose code you do not trust in a container or a virtual machine.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from abctune.core.errors import UserError

FILE_BYTES = 16 * 2**20  # of one file that the command writes
OPEN_FILES = 64
# Sets the limits, then becomes the command: in a fresh interpreter, since Python code between fork and exec can hang a
# process that has threads, as torch has.
LIMITED = """
import os, resource, sys
cpu, memory, size, files = map(int, sys.argv[1:5])
for kind, value in (("CPU", cpu), ("AS", memory), ("FSIZE", size), ("NOFILE", files), ("CORE", 0)):
    resource.setrlimit(getattr(resource, "RLIMIT_" + kind), (value, value))
try:
    os.execvp(sys.argv[5], sys.argv[5:])
except FileNotFoundError:
    sys.exit(127)
"""
NOT_FOUND = 127


def accepts(command: Sequence[str], files: Mapping[str, str], seconds: float, memory_mib: int) -> bool:
    """Whether the command ends with exit status 0 within its limits.

    Args:
        command: words, without a shell; the word `python` in front is this Python.
        files: name -> text, written into the folder that the command runs in.

    Raises:
        UserError: there is no such command.
    """
    words = [sys.executable if command[0] == "python" else command[0], *command[1:]]
    limits = (math.ceil(seconds), memory_mib * 2**20, FILE_BYTES, OPEN_FILES)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for name, text in files.items():
            (Path(folder) / name).write_text(text, encoding="utf-8", errors="replace")
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", LIMITED, *map(str, limits), *words],
            cwd=folder,
            env={"PATH": os.defpath, "HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = -signal.SIGKILL
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # what it left running, too
            process.wait()
    if status == NOT_FOUND:
        raise UserError(
            f"params.yaml: evaluation.checks: no command {command[0]!r} on this machine; install it"
        )
    return status == 0
