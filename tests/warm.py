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

import array
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

# Which server runs a module of the project. `light` has no Hugging Face library, whose settings tests of the hub change.
KINDS = {
    "stages.train": "unsloth",
    "stages.eval": "models",
    "stages.export": "models",
    "stages.format": "tokenizer",
    "tools.promote": "models",
    "tools.verify": "models",
}
# The same for code that is given with `-c`, by what stands in it.
CODE = {"from app.": "models", "import stages.train": "unsloth", "run_module('stages.fetch'": "light"}
# The beginnings of variables that libraries read when they are imported.
AT_IMPORT = ("LD_", "MKL_", "MPL", "OMP_", "OPENBLAS_", "PYTHON")
MODELS_AT_IMPORT = (
    *("ACCELERATE_", "CUDA_", "HF_", "KMP_", "PYTORCH_", "TORCHDYNAMO_", "TORCHINDUCTOR_", "TRANSFORMERS_"),
    *("TRITON_", "UNSLOTH_", "USE_"),
)
# The environment before this process imported a library that adds to it. The conftest of a folder that pytest is given
# by name imports such libraries, right after tests/conftest.py has imported this module.
START = dict(os.environ)
THREADS = "OMP_NUM_THREADS"
PROGRAM_OF_TORCHRUN = "PYTHON_EXEC"
ADDED = "ABCTUNE_TESTS_ADDED"  # what a server's libraries have set in the environment, as JSON
HOME = "ABCTUNE_TESTS_WARM"  # the variable that names the servers' folder
CHOSEN = "ABCTUNE_TESTS_CHOSEN"  # names of the variables that the test itself has set for a started command, as JSON
WORKER = "import sys;exec(eval(sys.stdin.readline()))"  # what execnet has the `python` of a test process run


# `python` for what DVC, torchrun and our tools start: a stage or DVC goes to a server, all else to the interpreter.
PROGRAM = """#!/bin/sh
case "$*" in
"-m stages."* | "-m dvc "*) exec {python} {client} "$@" ;;
"-u -m stages."*) shift; exec {python} {client} "$@" ;;
*) exec {python} "$@" ;;
esac
"""


class Command(NamedTuple):
    """A command that a server can run: the server's kind, the module, its arguments, its environment."""

    kind: str
    module: str
    arguments: list[str]
    environment: dict[str, str]


def open_home(folder: Path) -> None:
    """Let commands be run by servers, which are started when they are needed and end with this process."""
    if sys.platform == "linux" and not Path("/dev/nvidiactl").exists():
        program = folder / "bin/python"
        about = {"owner": os.getpid(), "environment": START | {PROGRAM_OF_TORCHRUN: str(program)}}
        (folder / "start.json").write_text(json.dumps(about), encoding="utf-8")
        program.parent.mkdir()
        program.write_text(PROGRAM.format(python=shlex.quote(sys.executable), client=shlex.quote(__file__)))
        program.chmod(0o755)
        os.environ[HOME] = str(folder)


def worker_spec(spec: str) -> str:
    """What xdist is to start for a test process: collecting imports what a server has imported, for 20 s of CPU."""
    if spec != "popen" or HOME not in os.environ:
        return spec
    return f"popen//python={shlex.join([sys.executable, __file__])}"


def with_program(environment: Mapping[str, str]) -> dict[str, str]:
    """What lets DVC and torchrun find the `python` that has servers run the stages; empty where there are none."""
    if HOME not in os.environ:
        return {}
    programs = Path(os.environ[HOME]) / "bin"
    return {
        "PATH": f"{programs}{os.pathsep}{environment['PATH']}",
        PROGRAM_OF_TORCHRUN: str(programs / "python"),
    }


def find(command: Sequence[str], environment: Mapping[str, str], chosen: Mapping[str, str]) -> Command | None:
    """The command for a server, or None where it needs a new interpreter.

    Args:
        command: the program and its arguments.
        environment: what the command inherits from the tests.
        chosen: what the test itself sets for this command.
    """
    if HOME not in os.environ:
        return None
    match [Path(command[0]).name, *command[1:]]:
        case ["dvc", *arguments] | ["python", "-m", "dvc", *arguments]:
            module, kind = "dvc", "light"
        case ["python", "-m", module, *arguments] if module.startswith(("stages.", "tools.")):
            kind = KINDS.get(module, "light")
        case ["python", "-u", "-c", code] if code == WORKER:
            module, arguments, kind = "-c", [code], "models"
        case ["python", "-c", code] if kinds := [kind for part, kind in CODE.items() if part in code]:
            module, arguments, kind = "-c", [code], kinds[0]
        case _:
            return None
    read = AT_IMPORT if kind == "light" else AT_IMPORT + MODELS_AT_IMPORT
    first = json.loads((Path(os.environ[HOME]) / "start.json").read_text(encoding="utf-8"))["environment"]
    # Where to find modules, and how many threads torch uses, a server's child can still be told.
    told = (THREADS, "PYTHONPATH") if kind in ("models", "unsloth") else ("PYTHONPATH",)
    if any(
        name.startswith(read) and name not in told and first.get(name) != value
        for name, value in chosen.items()
    ):
        return None
    # What the tests' own process has got from importing the libraries is not theirs to pass on.
    all_read = AT_IMPORT + MODELS_AT_IMPORT
    inherited = {name: value for name, value in environment.items() if not name.startswith(all_read)}
    started = {
        name: value for name, value in first.items() if name.startswith(all_read) and name in environment
    }
    return Command(kind, module, arguments, started | inherited | dict(chosen))


def run(command: Command, folder: Path) -> tuple[int, str, str]:
    """Run a command in a folder: its exit status as subprocess gives it, what it printed, its errors."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, Path(os.devnull).open() as nothing:
        status = _status(command, folder, (nothing.fileno(), out.fileno(), err.fileno()))
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
        environment, chosen: as those of `find`.
        streams: what subprocess.Popen is told of input, output and errors.
    """
    if found := find(command, environment, chosen):
        _server(found.kind)
        command = [sys.executable, __file__, *command[1:]]
        chosen = {**chosen, CHOSEN: json.dumps(list(chosen))}
    return subprocess.Popen(command, cwd=folder, env={**environment, **chosen}, text=True, **streams)


def _status(
    command: Command,
    folder: Path,
    files: tuple[int, int, int],
    started: Callable[[int], object] = lambda pid: None,
) -> int:
    """Run a command on open files for its input, output and errors; its exit status. `started` is told its process."""
    path = _server(command.kind)
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(str(path))
        server.sendmsg([b"."], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))])
        server.sendall(json.dumps([str(folder), *command]).encode() + b"\n")
        answer = server.makefile("rb")
        started(int(answer.readline() or 0))
        status = answer.readline()
    if not status:
        raise RuntimeError(f"the server of warm processes has ended; see {path.with_suffix('.log')}")
    return int(status)


def _text(file) -> str:
    file.seek(0)
    return file.read().decode()


def _server(kind: str) -> Path:
    """The socket of the server of a kind, which is started if no one has asked for it yet."""
    path = Path(os.environ[HOME]) / f"{kind}.socket"
    if path.exists():
        return path
    with FileLock(path.with_suffix(".lock")):
        if path.exists():
            return path
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
        return path


def pass_on_signals(pid: int) -> None:
    """Have this process hand to another the signals that end it."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda sent, _: os.kill(pid, sent))


def main() -> int:
    """Be the `python` that DVC has started with the arguments `-m stages.<name> ...`."""
    # Of what the command that started this one has, its server's libraries had set some when they were imported.
    added = json.loads(os.environ.pop(ADDED, "{}"))
    chosen = json.loads(os.environ.pop(CHOSEN, "null"))
    environment = {name: value for name, value in os.environ.items() if added.get(name) != value}
    command = ["python", *sys.argv[1:]]
    by_test = environment if chosen is None else {name: environment[name] for name in chosen}
    if found := find(command, environment, by_test):
        return _status(found, Path.cwd(), (0, 1, 2), pass_on_signals)
    os.execve(sys.executable, [sys.executable, *sys.argv[1:]], environment)


if __name__ == "__main__":
    sys.exit(main())
