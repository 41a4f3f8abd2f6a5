"""How a command that only prints is started."""

from __future__ import annotations

import signal
from collections.abc import Callable

import typer


def run_command(main: Callable[..., None]) -> None:
    """Run `main` with typer; a reader that closes the pipe (`| head`) ends it by SIGPIPE, quietly, like any program.

    Python ignores that signal, and typer then ends with status 1, which here means that something is wrong.
    """
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    typer.run(main)
