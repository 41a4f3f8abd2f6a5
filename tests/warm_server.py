"""Import the libraries of one kind of command and fork a child for each command that is asked for.

    python tests/warm_server.py KIND SOCKET OWNER

Ends when the process OWNER does. See tests/warm.py for the other side. Linux only.
"""

from __future__ import annotations

import array
import atexit
import gc
import io
import json
import os
import random
import runpy
import selectors
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

LIGHT = [
    "dvc.cli.parser",
    "dvc.commands.repro",
    "dvc.commands.status",
    "dvc.commands.commit",
    "dvc.output",
    "dvc.dependency",
    "dvc.cachemgr",
    "dvc.data_cloud",
    "dvc.render.match",
    "dvc.repo.artifacts",
    "dvc.repo.checkout",
    "dvc.repo.commit",
    "dvc.repo.datasets",
    "dvc.repo.experiments.collect",
    "dvc.repo.experiments.queue.celery",
    "dvc.repo.experiments.queue.tasks",
    "dvc.repo.experiments.save",
    "dvc.repo.experiments.show",
    "dvc.repo.index",
    "dvc.repo.plots",
    "dvc.repo.reproduce",
    "dvc.repo.stage",
    "dvc.repo.status",
    "dvc_data.fs",
    "dvc_data.hashfile.db.local",
    "dvc_data.index",
    "dvc_render.vega_templates",
    "dvc_task.app",
    "dvc_task.proc.manager",
    "dvc.fs",
    "celery.app.control",
    "kombu.transport.filesystem",
    "dulwich.porcelain",
    "dulwich.repo",
    "filelock",
    "git",
    "httpx",
    "jinja2",
    "matplotlib.pyplot",
    "networkx",
    "numpy",
    "pandas",
    "psutil",
    "pyarrow.compute",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "pydantic",
    "pygit2",
    "requests",
    "rich.console",
    "rich.live",
    "ruamel.yaml",
    "scipy.stats",
    "scmrepo.git",
    "typer",
    "typer.main",
]
ROWS = [
    "filelock",
    "jinja2",
    "numpy",
    "pandas",  # pyarrow imports it, the first time that it is given a list
    "psutil",
    "pyarrow.compute",
    "pyarrow.parquet",
    "pydantic",
    "rich.console",
    "ruamel.yaml",
    "typer",
]
MODELS = [
    "torch",
    "accelerate",
    "peft",
    "safetensors.torch",
    "scipy.stats",
    "transformers.generation.utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.tokenization_utils_fast",
]
# What DVCLive imports to find the project that a training belongs to.
DVCLIVE = [
    "dulwich.porcelain",
    "dvc.fs",
    "dvc.repo.experiments.cache",
    "dvc.repo.index",
    "dvc.repo.plots",
    "dvc_data.index",
    "dvclive",
    "git",
    "pygit2",
    "scmrepo.git",
]
IMPORTS = {
    "light": LIGHT,
    "tokenizer": [
        *ROWS,
        "transformers.tokenization_utils_fast",
        "transformers.models.auto.tokenization_auto",
    ],
    # tools.verify and tools.promote ask DVC too, and the test processes import the rest.
    "models": [*LIGHT, *MODELS, "datasets", "gradio", "openai", "playwright.sync_api"],
    "unsloth": [
        "unsloth",
        *ROWS,
        *MODELS,
        "transformers.trainer",
        "peft.utils.transformers_weight_conversion",
        *DVCLIVE,
    ],
}


UNDRAWN = "ABCTUNE_TESTS_UNDRAWN"  # the variable that lets plot leave its figures empty

# What nearly every stage and tool imports of the project: building its pydantic classes takes a third of a second.
ROOT = Path(__file__).parent.parent
COMMON = ("abctune.core.params", "abctune.core.records")


class Request(NamedTuple):
    """What a child is to do, and where its output goes."""

    client: socket.socket
    files: list[int]
    folder: str
    module: str
    arguments: list[str]
    environment: dict[str, str]


def main(kind: str, path: Path, owner: int) -> None:
    """Serve until the owner ends; return in the children, whose command is then run."""
    given = dict(os.environ)
    prepare(kind)
    common = import_common()
    gc.freeze()
    added = {name: value for name, value in os.environ.items() if given.get(name) != value}
    request = serve(path, owner)
    paths = [Path(path) for path in request.environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    adopt(common, [Path(request.folder), *paths])
    sys.path[1:1] = map(str, paths)
    become(request, added, path.with_name("bin") / "python")


def prepare(kind: str) -> None:
    """Import what commands of a kind import, in the environment in which they do."""
    if kind in ("models", "unsloth"):  # as abctune.llm.environment does
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if kind == "tokenizer":  # as stages.format does
        sys.modules["torch"] = None  # type: ignore[assignment]
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.fsync = lambda descriptor: None  # no test cuts the power, and a training waits for it a thousand times
    gc.disable()
    with without_gpu() if kind in ("models", "unsloth") else nullcontext():
        for name in IMPORTS[kind]:
            import_module(name)
    if kind == "light":
        draw_once()
    if kind in ("light", "models"):
        import_module("warm_dvc").keep_what_is_known(ROOT / "dvc.yaml")
    if kind in ("models", "unsloth"):  # builds the table of all architectures' renamed weights: half a second
        import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("llama")
    gc.enable()
    if kind == "light" and "huggingface_hub" in sys.modules:
        raise SystemExit("`light` is for what reads the hub's settings afresh")
    if threading.active_count() > 1:
        raise SystemExit(f"threads would be lost in children: {threading.enumerate()}")


def draw_once() -> None:
    """Have matplotlib find its fonts and build its parser of formulas, which every first figure of a process waits for."""
    figure = import_module("matplotlib.figure").Figure()
    figure.subplots().set_title("$10^{-1}$")
    figure.savefig(io.BytesIO(), format="svg")


def import_common() -> dict[Path, bytes]:
    """Import COMMON from this repository; the files that were read, below its root, and what they hold."""
    sys.path.insert(0, str(ROOT))
    for name in COMMON:
        import_module(name)
    del sys.path[0]
    files = [Path(module.__file__) for module in project_modules().values()]
    return {file.relative_to(ROOT): file.read_bytes() for file in files}


def project_modules() -> dict[str, Any]:
    """The modules of the project that have been imported, by name."""
    return {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "abctune"}


def adopt(common: dict[Path, bytes], folders: list[Path]) -> None:
    """Give a command the modules of COMMON if its code is the same, else let it import its own.

    Args:
        folders: where the command looks for modules.
    """
    folder = next((folder for folder in folders if (folder / "abctune").is_dir()), folders[0])
    same = all((folder / file).is_file() and (folder / file).read_bytes() == common[file] for file in common)
    for name, module in project_modules().items():
        if not same:
            del sys.modules[name]
            continue
        module.__file__ = str(folder / Path(module.__file__).relative_to(ROOT))
        if hasattr(module, "__path__"):
            module.__path__ = [str(Path(module.__file__).parent)]


@contextmanager
def without_gpu() -> Iterator[None]:
    """Answer libraries that look for a GPU when they are imported: after torch has looked, no fork can ask again."""
    import torch

    count = torch._C._cuda_getDeviceCount
    torch._C._cuda_getDeviceCount = lambda: 0
    yield
    torch._C._cuda_getDeviceCount = count


def serve(path: Path, owner: int) -> Request:
    """Fork a child for each request, and tell its client the exit status; returns in the child.

    A client that goes away takes its command with it.
    """
    waiting = selectors.DefaultSelector()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path.with_suffix(".new")))
    listening.listen(64)
    path.with_suffix(".new").rename(path)  # from now on there is a server
    waiting.register(listening, selectors.EVENT_READ, None)
    try:
        waiting.register(os.pidfd_open(owner), selectors.EVENT_READ, "owner")
    except ProcessLookupError:
        os._exit(0)
    while True:
        key, _ = waiting.select()[0]
        match key.data:
            case None:
                client, _ = listening.accept()
                waiting.register(client, selectors.EVENT_READ, ("asks", Asking(client)))
            case "asks", asking:  # may be stopped or killed half-way
                if asking.goes_on():
                    continue
                client = asking.client
                waiting.unregister(client)
                request = asking.request()
                pid = os.fork() if request else -1
                if not pid:
                    waiting.close()
                    listening.close()
                    client.close()
                    return request
                for file in asking.files:
                    os.close(file)
                if not request:
                    client.close()
                    continue
                with suppress(OSError):  # the client has left, as is seen next
                    client.sendall(f"{pid}\n".encode())
                waiting.register(os.pidfd_open(pid), selectors.EVENT_READ, ("ended", pid, client))
                waiting.register(client, selectors.EVENT_READ, ("left", pid, client))
            case "owner":
                os._exit(0)
            case "left", pid, client:  # says nothing while it waits, so it is gone
                waiting.unregister(client)
                try:
                    os.killpg(pid, signal.SIGKILL)
                except ProcessLookupError:  # it has no group of its own yet
                    os.kill(pid, signal.SIGKILL)
            case "ended", pid, client:
                waiting.unregister(key.fd)
                os.close(key.fd)
                with suppress(KeyError):  # the client left
                    waiting.unregister(client)
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with suppress(OSError):
                    client.sendall(f"{status}\n".encode())
                client.close()


class Asking:
    """A client that is sending its request: three open files, and a line of JSON."""

    def __init__(self, client: socket.socket) -> None:
        self.client, self.files = client, array.array("i")
        self._line = b""

    def goes_on(self) -> bool:
        """Read what has come; whether more is to come."""
        try:
            data, ancillary, _, _ = self.client.recvmsg(1 << 16, socket.CMSG_SPACE(3 * self.files.itemsize))
        except OSError:
            return False
        for _, _, content in ancillary:
            self.files.frombytes(content)
        self._line += data
        return bool(data) and not self._line.endswith(b"\n")

    def request(self) -> Request | None:
        """What the client asks for; None of one that has left before it had said so."""
        if not self._line.endswith(b"\n"):
            return None
        folder, _, module, arguments, environment = json.loads(self._line)
        return Request(self.client, list(self.files), folder, module, arguments, environment)


def become(request: Request, added: dict[str, str], program: Path) -> None:
    """Run a command in this process, a child, and end as an interpreter would.

    The standard streams stay the interpreter's, on other files: the server has written nothing to them.
    """
    os.setsid()
    for number, file in enumerate(request.files):
        os.dup2(file, number)
        os.close(file)
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ.clear()
    os.environ.update(added | {"ABCTUNE_TESTS_ADDED": json.dumps(added)} | request.environment)
    os.chdir(request.folder)
    reseed()
    wanted = os.environ.get("OMP_NUM_THREADS")
    if wanted and wanted != threads and (torch := sys.modules.get("torch")):
        torch.set_num_threads(int(wanted))
    sys.path[0] = request.folder if request.module != "dvc" else str(Path(sys.executable).parent)
    if request.module.startswith("tools."):  # which start DVC by it
        sys.executable = str(program)
    if request.module == "stages.plot" and UNDRAWN in os.environ:
        leave_figures_undrawn()
    sys.argv = [request.module, *(request.arguments if request.module != "-c" else [])]
    os._exit(status_of(request.module, request.arguments))


def leave_figures_undrawn() -> None:
    """Let plot write empty figures: drawing them is most of its time."""
    figures = import_module("stages.plot.figures")
    for name in ("forest", "test_loss", "curves", "resources", "lengths"):
        setattr(figures, name, lambda *_: None)
    figures.svg_of = lambda _: '<svg xmlns="http://www.w3.org/2000/svg"></svg>'


def reseed() -> None:
    """Give this child random numbers of its own."""
    random.seed()
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()


def status_of(module: str, arguments: list[str]) -> int:
    """Run a module as `python -m` does, or code as `python -c` does; the exit status."""
    status: Any = 0
    try:
        if module == "-c":
            exec(compile(arguments[0], "<string>", "exec"), {"__name__": "__main__"})
        else:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        status = ended.code
        if status is not None and not isinstance(status, int):
            print(status, file=sys.stderr)
            status = 1
    except KeyboardInterrupt:
        status = 130
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return status or 0


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
