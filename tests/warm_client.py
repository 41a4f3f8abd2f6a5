"""The `python` and `dvc` of commands that tests run: hands each to a server of warm processes that can run it.

DVC starts one for every stage, so this imports little and is run without site-packages: 0.05 s instead of 0.25 s.
tests/warm.py says what the servers are.
"""

# ruff: noqa: PTH100, PTH109, PTH110, PTH118, PTH119, PTH120, PTH123  (importing pathlib takes 10 ms)
from __future__ import annotations

import array
import json
import os
import signal
import socket
import sys
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence

# Which server runs a module of the project. `light` has no Hugging Face library, whose settings tests of the hub change.
KINDS = {
    "stages.train": "unsloth",
    "stages.eval": "models",
    "stages.export": "models",
    "stages.format": "tokenizer",
    "tools.promote": "models",
    "tools.verify": "models",
    "app": "models",
}
# The same for code that is given with `-c`, by what stands in it.
CODE = {"from app.": "models", "import stages.train": "unsloth", "run_module('stages.fetch'": "light"}
# The beginnings of variables that libraries read when they are imported.
AT_IMPORT = ("LD_", "MKL_", "MPL", "OMP_", "OPENBLAS_", "PYTHON")
MODELS_AT_IMPORT = (
    *("ACCELERATE_", "CUDA_", "HF_", "KMP_", "PYTORCH_", "TORCHDYNAMO_", "TORCHINDUCTOR_", "TRANSFORMERS_"),
    *("TRITON_", "UNSLOTH_", "USE_"),
)
THREADS = "OMP_NUM_THREADS"
ADDED = "ABCTUNE_TESTS_ADDED"  # what a server's libraries have set in the environment, as JSON
HOME = "ABCTUNE_TESTS_WARM"  # the variable that names the servers' folder
CHOSEN = "ABCTUNE_TESTS_CHOSEN"  # names of the variables that the test itself has set for a started command, as JSON
PID_FILE = "ABCTUNE_TESTS_PID"  # the file that gets the process id of a started command
WORKER = "import sys;exec(eval(sys.stdin.readline()))"  # what execnet has the `python` of a test process run

# A command that a server can run: the server's kind, the module, a list of its arguments, its environment.
Command = namedtuple("Command", ("kind", "module", "arguments", "environment"))


def find(command: Sequence[str], environment: Mapping[str, str], chosen: Mapping[str, str]) -> Command | None:
    """The command for a server, or None where it needs a new interpreter.

    Args:
        command: the program and its arguments.
        environment: what the command inherits from the tests.
        chosen: what the test itself sets for this command.
    """
    if HOME not in os.environ:
        return None
    match [os.path.basename(command[0]), *command[1:]]:
        case ["dvc", *arguments] | ["python", "-m", "dvc", *arguments]:
            module, kind = "dvc", "light"
        case ["python", "-m", module, *arguments] if (
            module.startswith(("stages.", "tools.")) or module in KINDS
        ):
            kind = KINDS.get(module, "light")
        case ["python", "-u", "-c", code] if code == WORKER:
            module, arguments, kind = "-c", [code], "models"
        case ["python", "-c", code] if kinds := [kind for part, kind in CODE.items() if part in code]:
            module, arguments, kind = "-c", [code], kinds[0]
        case _:
            return None
    read = AT_IMPORT if kind == "light" else AT_IMPORT + MODELS_AT_IMPORT
    with open(os.path.join(os.environ[HOME], "start.json"), encoding="utf-8") as file:
        first = json.load(file)["environment"]
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


def socket_of(kind: str) -> str:
    """The socket of the server of a kind; it is there once the server is."""
    return os.path.join(os.environ[HOME], f"{kind}.socket")


def status_of(
    command: Command,
    folder: str,
    files: tuple[int, int, int],
    started: Callable[[int], object] = lambda pid: None,
) -> int:
    """Run a command on open files for its input, output and errors; its exit status as subprocess gives it.

    Args:
        started: is told the process.
    """
    path = socket_of(command.kind)
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        server.sendmsg([b" "], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))])
        server.sendall(json.dumps([folder, *command]).encode() + b"\n")
        answer = server.makefile("rb")
        started(int(answer.readline() or 0))
        status = answer.readline()
    if not status:
        raise RuntimeError(f"the server of warm processes has ended; see {path.removesuffix('socket')}log")
    return int(status)


def pass_on_signals(pid: int) -> None:
    """Have this process hand to another the signals that end it."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda sent, _: os.kill(pid, sent))


def main() -> int:
    """Be the program that DVC has started with the arguments `-m stages.<name> ...`."""
    # Of what the command that started this one has, its server's libraries had set some when they were imported.
    added = json.loads(os.environ.pop(ADDED, "{}"))
    chosen = json.loads(os.environ.pop(CHOSEN, "null"))
    pid_file = os.environ.pop(PID_FILE, None)
    environment = {name: value for name, value in os.environ.items() if added.get(name) != value}
    command = ["python", *sys.argv[1:]]
    by_test = (
        environment if chosen is None else {name: environment[name] for name in chosen if name != PID_FILE}
    )
    if found := find(command, environment, by_test):
        if not os.path.exists(socket_of(found.kind)):
            start_server(found.kind)

        def started(pid: int) -> None:
            pass_on_signals(pid)
            if pid_file:
                with open(pid_file, "w", encoding="utf-8") as file:
                    file.write(str(pid))

        return status_of(found, os.getcwd(), (0, 1, 2), started)
    os.execve(sys.executable, [sys.executable, *sys.argv[1:]], environment)


def start_server(kind: str) -> None:
    """Have a full interpreter start the server: that takes more modules than this one has."""
    if failed := os.spawnv(os.P_WAIT, sys.executable, command_of_server(kind)):
        sys.exit(failed)


def command_of_server(kind: str) -> list[str]:
    """A command that starts the server of a kind, unless it runs already."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    code = f"import sys; sys.path.insert(0, {root!r}); from tests.warm import require_server; require_server({kind!r})"
    return [sys.executable, "-c", code]


if __name__ == "__main__":
    sys.exit(main())
