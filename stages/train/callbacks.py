"""Callbacks between training steps: curves, live samples, the best adapter, a progress bar."""

from __future__ import annotations

import json
import math
import random
import time
from pathlib import Path
from typing import Any

import torch
from dvclive import Live
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainerState
from transformers.trainer_callback import ProgressCallback

from abctune.core.errors import UserError
from abctune.core.provenance import peak_reserved_gib, peak_rss_gib
from abctune.core.records import Kept, LiveSampleRecord
from abctune.llm.conversation import Message
from abctune.llm.inference import generate
from abctune.llm.prompts import PROMPTS
from stages.train.adapter_files import save_adapter, trained

SAMPLE_TOKENS = 48  # per live sample: enough to see the style, short enough not to slow training
CURVES = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "eval_loss": "eval/loss",
}


class ThroughputTimer(TrainerCallback):
    """Time spent in training steps alone, and the tokens they took: evaluation and samples do not count."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Add the step's time, once the GPU has finished it."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - self._started

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of this callback."""
        return {"seconds": self.seconds}

    def restore(self, saved: dict[str, Any]) -> None:
        """Restore what a checkpoint kept."""
        self.seconds = saved["seconds"]

    def tokens_per_second(self, state: TrainerState) -> float:
        """Non-padding tokens per second of training steps so far."""
        return state.num_input_tokens_seen / self.seconds if self.seconds else 0.0


class FinalStep(TrainerCallback):
    """Log and evaluate after the last step too: a run shorter than these intervals has its curves and final losses.

    On every rank, since an evaluation needs all of them.
    """

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Log at the last step, whatever `logging_steps` is."""
        if state.global_step >= state.max_steps:
            control.should_log = True
            control.should_evaluate = control.should_evaluate or args.eval_strategy != "no"


class DVCLiveLogger(TrainerCallback):
    """Log to DVCLive by optimizer step.

    transformers' own DVCLive callback counts log events as steps, lets variants overwrite each other and
    rewrites the root dvc.yaml.
    """

    def __init__(self, live: Live, clock: ThroughputTimer) -> None:
        self._live = live
        self._clock = clock

    def on_log(
        self, _args: Any, state: TrainerState, _control: Any, logs: dict[str, float], **_: Any
    ) -> None:
        """Write the logged numbers to DVCLive's files."""
        self._live.step = state.global_step
        for name, value in logs.items():
            if name in CURVES:
                self._live.log_metric(CURVES[name], value)
        if "loss" in logs:
            self._live.log_metric("train/tokens_per_second", self._clock.tokens_per_second(state))
            self._live.log_metric("train/peak_rss_gib", peak_rss_gib())
            if (reserved := peak_reserved_gib()) is not None:
                self._live.log_metric("train/peak_reserved_gib", reserved)
        self._live.make_summary()


class TerminateOnNonFinite(TrainerCallback):
    """End the run at a loss or gradient that is not finite, before the optimizer puts it into the adapter.

    The adapter as it was then goes to `folder`, to look into; nothing is published.
    """

    def __init__(self, trainer: Trainer, folder: Path) -> None:
        self._trainer = trainer
        self._folder = folder

    def on_pre_optimizer_step(
        self, _args: Any, state: TrainerState, _control: Any, model: Any, **_: Any
    ) -> None:
        """Stop at a gradient that is not finite."""
        loss = float(self._trainer._tr_loss)  # the sum since the last log: a number only if all of it are
        if not math.isfinite(loss):
            self._stop(f"loss is {loss}", state, state.global_step + 1, model)
        if not self._trainer.gradients_are_finite():
            self._stop("a gradient is infinite or nan", state, state.global_step + 1, model)

    def on_log(
        self, _args: Any, state: TrainerState, _control: Any, logs: dict[str, float], model: Any, **_: Any
    ) -> None:
        """Stop at a loss that is not finite."""
        if not math.isfinite(logs.get("eval_loss", 0.0)):
            self._stop(f"eval_loss is {logs['eval_loss']}", state, state.global_step, model)

    def _stop(self, what: str, state: TrainerState, step: int, model: Any) -> None:
        save_adapter(model, self._folder, state.is_world_process_zero)
        raise UserError(
            f"{what} at step {step}; nothing is published, the adapter that gave it is at {self._folder}. "
            "Lower the variant's learning_rate in params.yaml, or look for broken rows in data/formatted/*/preview.txt"
        )


class KeepBest(TrainerCallback):
    """Keep the adapter with the lowest train loss (the student report's callback), with the lowest eval loss, or the last one.

    It stays in memory until a checkpoint is saved, from which alone a lost session goes on, or the training ends: a variant
    that logs every step has a lower loss at nearly each, and would write its adapter as often.
    """

    def __init__(self, by: str, folder: Path) -> None:
        self.kept: Kept | None = None
        self.folder = folder
        self._by = by
        self._logged = {"train_loss": "loss", "eval_loss": "eval_loss"}.get(by)
        self._held: dict[str, torch.Tensor] | None = (
            None  # the kept adapter, where `folder` does not hold it yet
        )

    def on_log(
        self, _args: Any, state: TrainerState, _control: Any, logs: dict[str, float], model: Any, **_: Any
    ) -> None:
        """Keep the adapter where its loss is the lowest so far."""
        value = logs.get(self._logged) if self._logged else None
        if value is None or not math.isfinite(value):  # TerminateOnNonFinite ends the run
            return
        if self.kept is None or self.kept.value is None or value < self.kept.value:
            self._hold(model, Kept(by=self._by, step=state.global_step, value=value))

    def on_save(self, _args: Any, state: TrainerState, _control: Any, model: Any, **_: Any) -> None:
        """Write what is kept, which becomes a part of the checkpoint."""
        self._write(model, state)

    def on_train_end(self, _args: Any, state: TrainerState, _control: Any, model: Any, **_: Any) -> None:
        """Keep the last adapter where none was kept before; write what is kept."""
        if self.kept is None:  # `last`, or a run shorter than its logging interval
            self._hold(model, Kept(by="last", step=state.global_step, value=None))
        self._write(model, state)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of this callback."""
        return {"kept": self.kept and self.kept.model_dump()}

    def restore(self, saved: dict[str, Any]) -> None:
        """Restore what a checkpoint kept."""
        self.kept = saved["kept"] and Kept(**saved["kept"])

    def _hold(self, model: Any, kept: Kept) -> None:
        self._held = {name: weight.detach().clone() for name, weight in trained(model).items()}
        self.kept = kept

    def _write(self, model: Any, state: TrainerState) -> None:
        if self._held is not None:
            save_adapter(model, self.folder, state.is_world_process_zero, self._held)
            self._held = None


class LiveSamples(TrainerCallback):
    """Answer a random prompt of the fixed list at each epoch's end and every `every` steps; print and store it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, path: Path, every: int, seed: int) -> None:
        self._tokenizer = tokenizer
        self._path = path
        self._every = every
        self._random = random.Random(seed)  # of its own, so that sampling cannot change what training draws

    def on_step_end(self, _args: Any, state: TrainerState, _control: Any, model: Any, **_: Any) -> None:
        """Sample every `sample_every` steps."""
        if self._every and state.global_step % self._every == 0:
            self._sample(state, model)

    def on_epoch_end(self, _args: Any, state: TrainerState, _control: Any, model: Any, **_: Any) -> None:
        """Sample at the end of each epoch."""
        self._sample(state, model)

    def on_train_begin(self, _args: Any, state: TrainerState, _control: Any, model: Any, **_: Any) -> None:
        """Sample where a run was stopped between an epoch's last step and its sample."""
        # Resumed from an epoch's last step, which is saved before its end: this sample was still to come.
        if state.global_step and state.epoch == int(state.epoch):
            self._sample(state, model)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of this callback."""
        return {"random": self._random.getstate()}

    def restore(self, saved: dict[str, Any]) -> None:
        """Restore what a checkpoint kept."""
        version, numbers, gauss = saved["random"]
        self._random.setstate((version, tuple(numbers), gauss))

    def _sample(self, state: TrainerState, model: Any) -> None:
        prompt = self._random.choice(PROMPTS)
        with torch.random.fork_rng():
            answer = generate(
                model, self._tokenizer, [[Message(role="user", content=prompt)]], SAMPLE_TOKENS
            )[0]
        if not state.is_world_process_zero:  # it has generated along: a sharded model needs all processes
            return
        sample = LiveSampleRecord(
            step=state.global_step, epoch=round(state.epoch or 0.0, 4), prompt=prompt, answer=answer.text
        )
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(sample.model_dump(), ensure_ascii=False) + "\n")
        print(f"\nsample at step {state.global_step}: {prompt!r}\n  -> {answer.text!r}", flush=True)


class Progress(ProgressCallback):
    """transformers' progress bar with the losses in it, instead of a line of JSON per log.

    Args:
        label: what is trained, in front of the bar.
    """

    def __init__(self, label: str = "") -> None:
        super().__init__()
        self._label = label
        self._shown: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **named: Any) -> None:
        """Show the bar."""
        super().on_train_begin(args, state, control, **named)
        if self.training_bar is not None:
            self.training_bar.set_description(self._label)

    def on_log(
        self, _args: Any, state: TrainerState, _control: Any, logs: dict[str, float], **_: Any
    ) -> None:
        """Show the loss in the progress bar."""
        if state.is_world_process_zero and self.training_bar is not None:
            self._shown |= {name: f"{logs[name]:.3f}" for name in ("loss", "eval_loss") if name in logs}
            self.training_bar.set_postfix(self._shown)
