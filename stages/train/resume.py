"""Save a run while it trains, stop it after a whole step, and resume it from what was saved."""

from __future__ import annotations

import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from transformers import TrainerCallback, TrainerState
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from abctune.core.errors import UserError
from abctune.core.files import atomic_output, read_json, write_json
from stages.train.checkpoints import CheckpointStore, seal
from stages.train.micro_batching import MicroBatching
from stages.train.processes import agree, answering_stops, from_main, process_state
from stages.train.trainer import TokenWeightedTrainer

OURS = "run"  # the folder within a checkpoint that is not the Trainer's


class Stateful(Protocol):
    """A callback whose state affects the results of the run."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""

    def restore(self, saved: dict[str, Any]) -> None:
        """Restore what a checkpoint kept."""


class Checkpoints(TrainerCallback):
    """Save every `every` steps (0: never), and at the end of the step in which SIGTERM or Ctrl-C comes.

    The Trainer saves adapter, optimizer, scheduler, random state and its place in the data; this adds what it does not:
    our callbacks' state, the running sum of the loss, and `folders` (name -> folder), which are put back on resuming.
    """

    def __init__(self, store: CheckpointStore, every: int, folders: dict[str, Path], started: float) -> None:
        self.start = start = from_main(store.open)
        agree(
            f"it cannot go on from {start}, which its machine lacks: let the machines share the folder checkpoints/, or "
            "delete it on the first one to start again"
            if start and not start.is_dir()
            else None
        )
        self.resumed_at: list[int] = []
        self._store = store
        self._every = every
        self._folders = folders
        self._started = started
        self._earlier_seconds = 0.0
        self._saved: dict[str, Any] = {}
        self._signal: str | None = None
        self._stopping = False
        for name, folder in folders.items() if process_state().is_main_process else ():
            shutil.rmtree(folder, ignore_errors=True)
            if start and (start / OURS / name).exists():
                shutil.copytree(start / OURS / name, folder)
        if start:
            if process_state().is_main_process:
                print(f"{store.variant}: going on from {start}", file=sys.stderr)
            self._saved = read_json(start / OURS / "state.json", made_by=f"train@{store.variant}")
            self._earlier_seconds = self._saved["seconds"]
            self.resumed_at = [*self._saved["resumed_at"], self._saved["step"]]

    @property
    def seconds(self) -> float:
        """Time since the start, earlier attempts' up to their checkpoint included."""
        return self._earlier_seconds + time.perf_counter() - self._started

    def attach(self, trainer: TokenWeightedTrainer, callbacks: dict[str, Stateful]) -> None:
        """Watch the trainer; give the callbacks back the state they were saved with."""
        self._trainer = trainer
        self._callbacks = callbacks
        trainer.add_callback(self)
        if self.start:
            trainer.micro_batching = MicroBatching(
                **self._saved["micro_batching"]
            )  # as small as memory has forced it to be
            trainer.repeated_steps = self._saved["repeated_steps"]
            for name, callback in callbacks.items():
                callback.restore(self._saved["callbacks"][name])

    @contextmanager
    def stopping_gently(self) -> Iterator[None]:
        """Let SIGTERM and Ctrl-C wait for the step's end; a second one ends the process at once."""

        def stop(number: int, _frame: Any) -> None:
            """Note the signal, and let a second one end the process."""
            self._signal = signal.Signals(number).name
            signal.signal(number, signal.SIG_DFL)
            if process_state().is_main_process:
                print(
                    f"\n{self._signal}: saving a checkpoint after this step; again: stop now", file=sys.stderr
                )

        with answering_stops(stop):
            yield

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Give the Trainer back what it has logged and not logged yet."""
        if self.start:  # the Trainer has just set these to zero, in the middle of a logging interval
            self._trainer._tr_loss.fill_(self._saved["loss_sum"])
            self._trainer._globalstep_last_logged = self._saved["last_logged"]

    def on_step_end(self, _args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Save every `save_steps` steps, and where a signal asks the training to stop."""
        due = self._every and state.global_step % self._every == 0
        if self._signal:
            self._trainer.accelerator.set_trigger()
        # A signal may reach a process after the others have passed this line, so all agree on the step at which to save.
        self._stopping = self._trainer.accelerator.check_trigger()
        # Not at the last step: the adapter is about to be published, and the Trainer cannot go on from a finished run.
        control.should_save = bool(due or self._stopping) and state.global_step < state.max_steps

    def on_save(self, args: Any, state: TrainerState, _control: Any, **_: Any) -> None:
        """Make what the Trainer has written complete, and put it in place."""
        if args.should_save:
            with atomic_output(self._store.path(state.global_step)) as folder:
                shutil.move(self._store.writing / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}", folder)
                (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle of code that nothing reads
                for name, source in self._folders.items():
                    if source.exists():
                        shutil.copytree(source, folder / OURS / name)
                write_json(folder / OURS / "state.json", self._state(state))
                seal(folder)
            self._store.prune()
        if self._stopping:
            raise UserError(
                f"stopped by {self._signal or 'a signal to another process'} after step {state.global_step} of "
                f"{state.max_steps}; `dvc repro train@{self._store.variant}` goes on from there"
            )

    def _state(self, state: TrainerState) -> dict[str, Any]:
        return {
            "step": state.global_step,
            "seconds": self.seconds,
            "resumed_at": self.resumed_at,
            "micro_batching": asdict(self._trainer.micro_batching),
            "repeated_steps": self._trainer.repeated_steps,
            "loss_sum": float(self._trainer._tr_loss),
            "last_logged": self._trainer._globalstep_last_logged,
            "callbacks": {name: callback.state() for name, callback in self._callbacks.items()},
        }
