"""Train in forked children of one process that has imported everything, so that a fault costs a second, not ten.

Started in a project's folder with a project's stages. Reads requests, one JSON object per line:
    root: the project's folder to train B in
    die_in_save, die_at: SIGKILL before the n-th change of a file (from 0) in the save of that step
    spoil, spoil_at: make the `loss` or the `gradient` of that step no number
and answers each with {"exit": status, "changes": [what the save changed], "output": what the run printed}.
"""

# ruff: noqa: E402, F401, I001  (the order of the imports is what this file is for)
import gc
import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))
os.environ["OMP_NUM_THREADS"] = "1"  # a fork takes over no threads
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what the libraries print is no answer

from stages.train.__main__ import main
import stages.train.by_unsloth
import torch
from stages.train import resume, trainer

torch.set_num_threads(1)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def watch_save(step: int, die_at: int, changes: Path) -> None:
    """In the save of `step`, note each change of a file and die before the one numbered `die_at` (-1: never)."""
    seen: list[str] = []
    watching = False

    def hook(event: str, arguments: tuple) -> None:
        opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
        if not watching or not (opened or event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir")):
            return
        if len(seen) == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        seen.append(f"{event} {arguments[0]}")

    def watched(function, state_of):
        def call(*arguments, **named):
            nonlocal watching
            watching = state_of(arguments).global_step == step
            try:
                return function(*arguments, **named)
            finally:
                watching = False
                changes.write_text(json.dumps(seen))

        return call

    sys.addaudithook(hook)
    for owner, name, state_of in (
        (trainer.TokenWeightedTrainer, "_save_checkpoint", lambda arguments: arguments[0].state),
        (resume.Checkpoints, "on_save", lambda arguments: arguments[2]),
    ):
        setattr(owner, name, watched(getattr(owner, name), state_of))


def spoil(what: str, step: int) -> None:
    """Make one step's loss, or one of its gradients, no number."""
    sound = trainer.TokenWeightedTrainer.training_step

    def training_step(self, model, *arguments, **named):
        loss = sound(self, model, *arguments, **named)
        if self.state.global_step + 1 != step:
            return loss
        if what == "loss":
            return loss * float("nan")
        next(p.grad for p in model.parameters() if p.grad is not None)[0, 0] = float("inf")
        return loss

    trainer.TokenWeightedTrainer.training_step = training_step


def child(request: dict) -> None:
    os.chdir(request["root"])
    log = os.open("train.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if "die_in_save" in request:
        watch_save(request["die_in_save"], request["die_at"], Path("changes.json").absolute())
    if "spoil" in request:
        spoil(request["spoil"], request["spoil_at"])
    main("B")


def run(request: dict) -> dict:
    root = Path(request["root"])
    pid = os.fork()
    if not pid:
        status = 70
        try:
            child(request)
            status = 0
        except SystemExit as exit:
            status = exit.code
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    changes = root / "changes.json"
    return {
        "exit": status,
        "output": (root / "train.log").read_text(errors="replace"),
        "changes": json.loads(changes.read_text()) if changes.exists() else [],
    }


if __name__ == "__main__":
    gc.freeze()  # or each fork's collector would copy what all share
    for line in sys.stdin:
        answers.write(json.dumps(run(json.loads(line))) + "\n")
        answers.flush()
