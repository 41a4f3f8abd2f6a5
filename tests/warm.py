"""Commands of a project, each in a process of its own, without the seconds that Python takes to import their libraries.

`python -m stages.train B` on the smallest model spends nearly all of its time on importing torch, transformers and
Unsloth: 4 to 15 s of CPU, hundreds of times in a test run. Here tests/warm_server.py imports the libraries once and
forks a child for each command. The child gets the folder, environment, arguments and output of that command, imports
the project's code from its folder, and ends as an interpreter does.

The test processes of pytest-xdist are such children too: each would otherwise import for half a minute to collect.

Libraries read some variables when they are imported, so a test that sets one of those gets a new interpreter, as does
every command where there is a GPU (no use to a forked process) and on systems other than Linux.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from tests import warm_client
from tests.warm_client import HOME, Command, find

# The environment before this process imported a library that adds to it. The conftest of a folder that pytest is given
# by name imports such libraries, right after tests/conftest.py has imported this module.
START = dict(os.environ)
PROGRAM_OF_TORCHRUN = "PYTHON_EXEC"
CLIENT = (sys.executable, "-S", "-E", warm_client.__file__)

# `python` for what DVC, torchrun and our tools start: a stage or DVC goes to a server, all else to the interpreter.
PYTHON = """#!/bin/sh
case "$*" in
"-m stages."* | "-m dvc "*) exec {client} "$@" ;;
"-u -m stages."*) shift; exec {client} "$@" ;;
*) exec {python} "$@" ;;
esac
"""
# `dvc` for what DVC starts: the worker of its queue, which starts another for each experiment.
DVC = """#!/bin/sh
exec {client} -m dvc "$@"
"""


def open_home(folder: Path) -> None:
    """Let commands be run by servers, which are started when they are needed and end with this process."""
    if sys.platform == "linux" and not Path("/dev/nvidiactl").exists():
        program = folder / "bin/python"
        about = {"owner": os.getpid(), "environment": START | {PROGRAM_OF_TORCHRUN: str(program)}}
        (folder / "start.json").write_text(json.dumps(about), encoding="utf-8")
        program.parent.mkdir()
        for path, text in ((program, PYTHON), (program.with_name("dvc"), DVC)):
            path.write_text(text.format(python=shlex.quote(sys.executable), client=shlex.join(CLIENT)))
            path.chmod(0o755)
        os.environ[HOME] = str(folder)


def is_on() -> bool:
    """Whether there are servers."""
    return HOME in os.environ


def worker_spec(spec: str) -> str:
    """What xdist is to start for a test process: collecting imports what a server has imported, for 20 s of CPU."""
    if spec != "popen" or not is_on():
        return spec
    return f"popen//python={shlex.join(CLIENT)}"


def with_program(environment: Mapping[str, str]) -> dict[str, str]:
    """What lets DVC and torchrun find the programs that have servers run the stages; empty where there are none."""
    if not is_on():
        return {}
    programs = Path(os.environ[HOME]) / "bin"
    return {
        "PATH": f"{programs}{os.pathsep}{environment['PATH']}",
        PROGRAM_OF_TORCHRUN: str(programs / "python"),
    }


def run(command: Command, folder: Path) -> tuple[int, str, str]:
    """Run a command in a folder: its exit status as subprocess gives it, what it printed, its errors."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, Path(os.devnull).open() as nothing:
        require_server(command.kind)
        files = (nothing.fileno(), out.fileno(), err.fileno())
        status = warm_client.status_of(command, str(folder), files)
        return status, _text(out), _text(err)


def start(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    chosen: Mapping[str, str],
    **streams: Any,
) -> subprocess.Popen[str]:
    """Start a command of text in a folder: on a server where one can run it, else in a new interpreter.

    Signals that end a program reach the command, and one that is killed here is killed there too; a stop signal and
    the process group are this side's own.

    Args:
        environment, chosen: as those of `find`. A file that PID_FILE names in `chosen` gets the command's own process id.
        streams: what subprocess.Popen is told of input, output and errors.
    """
    if found := find(command, environment, chosen):
        require_server(found.kind)
        command = [*CLIENT, *(["-m", "dvc"] if found.module == "dvc" else []), *command[1:]]
        chosen = {**chosen, warm_client.CHOSEN: json.dumps(list(chosen))}
    return subprocess.Popen(command, cwd=folder, env={**environment, **chosen}, text=True, **streams)


def _text(file) -> str:
    file.seek(0)
    return file.read().decode()


def begin_server(kind: str) -> None:
    """Start the server of a kind and do not wait for it."""
    subprocess.Popen(warm_client.command_of_server(kind), stdin=subprocess.DEVNULL, start_new_session=True)


def require_server(kind: str) -> None:
    """Start the server of a kind if no one has asked for it yet."""
    path = Path(warm_client.socket_of(kind))
    if path.exists():
        return
    with FileLock(path.with_suffix(".lock")):
        if path.exists():
            return
        start = json.loads((path.parent / "start.json").read_text(encoding="utf-8"))
        log = path.with_suffix(".log")
        with log.open("w") as written:
            process = subprocess.Popen(
                [sys.executable, Path(__file__).with_name("warm_server.py"), kind, path, str(start["owner"])],
                env=start["environment"],
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=written,
                start_new_session=True,
            )
        while not path.exists():
            if process.poll() is not None:
                raise RuntimeError(f"no server of warm processes: {log.read_text()}")
            time.sleep(0.02)
