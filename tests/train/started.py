"""A training that runs in the background until a test stops or kills it."""

import subprocess
import sys
import time
from collections.abc import Callable

from tests import warm
from tests.workspace import Workspace


def started(
    project: Workspace, ready: Callable[[], object], own_process: bool = False, **environment: str
) -> subprocess.Popen[str]:
    """The stage training B, as soon as it is `ready`; its stderr is piped.

    Args:
        own_process: whether the stage and the processes that it starts have to be this test's own, not a server's.
        environment: variables on top of the project's own.
    """
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    command = [sys.executable, "-m", "stages.train", "B"]
    if own_process:
        process = subprocess.Popen(
            command, cwd=project.root, env=project.environment(**environment), text=True, **streams
        )
    else:
        process = warm.start(command, project.root, project.environment(), environment, **streams)
    deadline = time.monotonic() + 300
    while not ready():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    return process


def has_checkpoint(project: Workspace, step: int | str, replicate: int | str = 1) -> Callable[[], object]:
    """Whether a replicate of B has a checkpoint of a step; "*" is any. All but the newest two are removed."""
    return lambda: list(project.root.glob(f"checkpoints/B/{replicate}/*/step-{step}"))
