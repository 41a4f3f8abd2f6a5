"""Time and memory of one command."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple


class Used(NamedTuple):
    status: int  # 0: the command succeeded
    seconds: float
    peak_rss_gib: float  # of the process or of a child, the larger


def run_measured(command: list[str], cwd: Path, **popen: Any) -> Used:
    """Run a command to its end in a folder; `popen` goes to subprocess.Popen."""
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=cwd, **popen)
    _, status, usage = os.wait4(process.pid, 0)
    return Used(status, time.perf_counter() - started, usage.ru_maxrss * 1024 / 2**30)
