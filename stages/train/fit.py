"""Train a variant's replicates one after the other on one loaded base model; the main rank's part.

Imports Unsloth before anything imports transformers, so import this module where training begins, not earlier.
"""

from __future__ import annotations

from abctune.llm.tokenizer import template_hash

from stages.train.model import Base  # isort: skip  (Unsloth comes before transformers, which it patches)

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from dvclive import Live

from abctune.core.params import Params
from abctune.core.provenance import hardware, peak_reserved_gib, peak_rss_gib, versions
from abctune.core.records import (
    Exposure,
    FinalLosses,
    Kept,
    ReplicateRecord,
    Schedule,
    SourceRecord,
    TrainingRecord,
    TrainResources,
    read_record,
    write_record,
)
from abctune.llm.tokenizer import BASE_MODEL
from stages.train.callbacks import (
    DVCLiveLogger,
    KeepBest,
    LiveSamples,
    SkippedSteps,
    TerminateOnNonFinite,
    ThroughputTimer,
)
from stages.train.checkpoints import CheckpointStore, explaining_errors, identity
from stages.train.data import as_dataset, exposure, load_subset
from stages.train.micro_batching import micro_batching_for
from stages.train.processes import Processes
from stages.train.publish import METRICS, Finished
from stages.train.recipe import Replicate, Run
from stages.train.resume import Checkpoints, Stateful
from stages.train.schedule import describe
from stages.train.trainer import Probe, TokenWeightedTrainer, build_trainer, training_arguments

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase, TrainerCallback

FINISHED = "finished"  # what the main rank says of a replicate that an earlier, interrupted run has trained


def train_replicates(
    run: Run, params: Params, tokenizer: PreTrainedTokenizerBase, processes: Processes, started: float
) -> list[Finished]:
    """Every replicate's adapter and record; those that an interrupted run has finished are not trained again.

    Args:
        started: time.perf_counter() at the start of the process. The first replicate trained here is charged with
            the imports and the loading of the base model.
    """
    rows, val = load_subset(run.variant, "train"), load_subset(run.variant, "val")
    base = Base(run.recipe, run.max_length)
    found = []
    for replicate in run.replicates:
        processes.begin(replicate.number)
        store = CheckpointStore(run.variant, identity(run, params, replicate), replicate.number)
        processes.broadcast("identity", store.made_of)
        if done := store.finished():
            processes.broadcast("checkpoint", FINISHED)
            store.restore_metrics(METRICS / run.variant / str(replicate.number))
        else:
            fit = Fit(run, replicate, store, tokenizer, processes, started)
            done = fit.train(base, in_order(rows, replicate), val)
            started = time.perf_counter()
        found.append(
            Finished(
                read_record(done / "training.json", TrainingRecord, f"train@{run.variant}"), done / "adapter"
            )
        )
    return found


def in_order(rows: pa.Table, replicate: Replicate) -> pa.Table:
    """The rows as a replicate sees them: the first in the file's order, each other in a permutation of its own."""
    if replicate.number == 1:
        return rows
    return rows.take(np.random.default_rng(replicate.seed).permutation(rows.num_rows))


class Fit:
    """One replicate's training: its place on disk, its callbacks, and the record of what happened."""

    def __init__(
        self,
        run: Run,
        replicate: Replicate,
        store: CheckpointStore,
        tokenizer: PreTrainedTokenizerBase,
        processes: Processes,
        started: float,
    ) -> None:
        self._run = run
        self._replicate = replicate
        self._store = store
        self._tokenizer = tokenizer
        self._processes = processes
        self._metrics = METRICS / run.variant / str(replicate.number)
        folders = {"kept": store.kept, "metrics": self._metrics}
        self._checkpoints = Checkpoints(store, run.recipe.save_steps, folders, started)
        self._timer = ThroughputTimer()
        self._keep = KeepBest(run.recipe.keep, store.kept)

    def train(self, base: Base, rows: pa.Table, val: pa.Table) -> Any:
        """Train, and return the folder in the checkpoint store with the adapter, the metrics and the record."""
        start = self._checkpoints.start
        self._processes.broadcast("checkpoint", start and str(start))
        model = base.with_adapter(self._run.lora, self._replicate.seed)
        with Live(str(self._metrics), resume=bool(start), save_dvc_exp=False, dvcyaml=None) as live:
            trainer = self._trainer(model, rows, val, live)
            self._processes.wait_for_others()
            with explaining_errors(self._store.folder), self._checkpoints.stopping_gently():
                trainer.train(resume_from_checkpoint=start)
        record = self._record(trainer, rows, base.decisions)
        return self._store.finish(
            self._metrics, lambda folder: write_record(folder / "training.json", record)
        )

    def _trainer(self, model: PeftModel, rows: pa.Table, val: pa.Table, live: Live) -> TokenWeightedTrainer:
        """The trainer with its callbacks; where a checkpoint is resumed, they have their state back."""
        run = self._run
        stateful: dict[str, Stateful] = {"clock": self._timer, "keep": self._keep}
        callbacks: list[TrainerCallback] = [self._timer, DVCLiveLogger(live, self._timer), self._keep]
        if self._replicate.number == 1:  # one replicate's samples show the style; each costs a generation
            samples = LiveSamples(
                self._tokenizer,
                self._metrics / "samples.jsonl",
                run.recipe.sample_every,
                self._replicate.seed,
            )
            callbacks.append(samples)
            stateful["samples"] = samples
        trainer = build_trainer(
            model,
            self._tokenizer,
            training_arguments(
                run.recipe_of(self._replicate), self._replicate.seed, output_dir=str(self._store.writing)
            ),
            as_dataset(rows),
            as_dataset(val),
            callbacks=callbacks,
            eval_batch_tokens=run.eval_batch_tokens,
            micro_batching=micro_batching_for(model, run.recipe, run.max_length),
            processes=self._processes,
        )
        self._tokens_at_start = trainer.micro_batching.tokens
        trainer.add_callback(TerminateOnNonFinite(trainer, self._store.last_finite))
        self._skipped = stateful["skipped"] = SkippedSteps(trainer)
        trainer.add_callback(self._skipped)
        if not self._checkpoints.start:  # else the micro-batches are those that were found to fit
            trainer.add_callback(Probe(trainer, run.max_length))
        self._checkpoints.attach(trainer, stateful)
        return trainer

    def _record(
        self, trainer: TokenWeightedTrainer, rows: pa.Table, decisions: dict[str, str]
    ) -> TrainingRecord:
        run, kept = self._run, self._keep.kept
        assert kept is not None  # on_train_end keeps the last step if nothing else was kept
        resources = TrainResources(
            seconds=round(self._checkpoints.seconds, 2),
            train_seconds=round(self._timer.seconds, 2),
            tokens_per_second=round(self._timer.tokens_per_second(trainer.state), 1),
            peak_rss_gib=round(peak_rss_gib(), 3),
            peak_reserved_gib=peak_reserved_gib(),
        )
        replicate = ReplicateRecord(
            replicate=self._replicate.number,
            seed=self._replicate.seed,
            kept=Kept(**kept._asdict()),
            final=final_losses(trainer.state.log_history),
            resumed_at=tuple(self._checkpoints.resumed_at),
            skipped_steps=self._skipped.count,
            resources=resources,
        )
        arguments = trainer.args
        return TrainingRecord(
            variant=run.variant,
            base_model=read_record(BASE_MODEL / "source.json", SourceRecord, "fetch-model"),
            arguments={
                key: value
                for key, value in sorted(arguments.to_dict().items())
                if not key.endswith(("token", "_dir"))
            },
            max_length=run.max_length,
            load_in_4bit=run.recipe.load_in_4bit,
            dtype="bfloat16" if arguments.bf16 else "float16" if arguments.fp16 else "float32",
            chat_template_sha256=template_hash(self._tokenizer),
            lora=run.lora.model_dump(mode="json"),
            kernels=decisions["kernels"],
            unreached=decisions["unreached"],
            base_weights=decisions["base_weights"],
            gradient_checkpointing=decisions["gradient_checkpointing"],
            micro_batching={"tokens_at_start": self._tokens_at_start} | asdict(trainer.micro_batching),
            schedule=Schedule.model_validate(describe(run.recipe)),
            processes=self._processes.world,
            exposure=Exposure.model_validate(exposure(rows, run.recipe)),
            replicates=(replicate,),
            published=self._replicate.number,
            versions=versions(),
            hardware=hardware(),
        )


def final_losses(history: list[dict[str, float]]) -> FinalLosses:
    """The last train and eval loss that the Trainer logged."""

    def last(key: str) -> float | None:
        return next((entry[key] for entry in reversed(history) if key in entry), None)

    return FinalLosses(train_loss=last("loss"), eval_loss=last("eval_loss"))
