"""Train a variant's replicates one after the other on one loaded base model, in every process the same.

Import it where training begins, after stages.train.sharding.base_of: Unsloth has to come before transformers.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from dvclive import Live
from transformers.utils.logging import disable_progress_bar

from abctune.core.params import LoraParams, Params
from abctune.core.places import BASE_MODEL, TRAIN
from abctune.core.provenance import hardware, peak_reserved_gib, peak_rss_gib, versions
from abctune.core.records import (
    FinalLosses,
    ReplicateRecord,
    SourceRecord,
    TrainingRecord,
    TrainResources,
    read_record,
    write_record,
)
from abctune.llm.lookups import require_entries
from abctune.llm.tokenizer import template_hash
from stages.train.callbacks import (
    DVCLiveLogger,
    KeepBest,
    LiveSamples,
    TerminateOnNonFinite,
    ThroughputTimer,
)
from stages.train.checkpoints import FINISHED, CheckpointStore, differences, explaining_errors, identity
from stages.train.data import as_dataset, exposure, load_subset
from stages.train.micro_batching import micro_batching_for
from stages.train.processes import agree, from_main, process_state
from stages.train.publish import Finished
from stages.train.recipe import Replicate, Run
from stages.train.resume import Checkpoints, Stateful
from stages.train.schedule import describe
from stages.train.trainer import Probe, TokenWeightedTrainer, build_trainer, training_arguments

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase, TrainerCallback


class Model(Protocol):
    """A base model on which adapters are trained one after the other."""

    decisions: dict[str, str]  # about it, in words, for the record

    def with_adapter(self, lora: LoraParams, seed: int) -> PeftModel:
        """The base with a fresh adapter, its first weights drawn by the seed."""


def train_replicates(
    run: Run, params: Params, tokenizer: PreTrainedTokenizerBase, base: Model, started: float
) -> list[Finished]:
    """Every replicate's adapter and record; those that an interrupted run has finished are not trained again.

    Args:
        base: the model to train on.
        started: time.perf_counter() at the start of the process. The first replicate trained here is charged with
            the imports and the loading of the base model.

    Returns:
        What was trained, in the main process; nothing in the others, which write nothing.

    Raises:
        UserError: another process's machine would train something else.
    """
    if not process_state().is_main_process:
        disable_progress_bar()
    rows, val = load_subset(run.variant, "train"), load_subset(run.variant, "val")
    found = []
    for replicate in run.replicates:
        store = CheckpointStore(run.variant, identity(run, params, replicate), replicate.number)
        require_same(store)
        done = from_main(store.finished)
        if not done:
            fit = Fit(run, replicate, store, tokenizer, started)
            done = fit.train(base, rows, val)
            started = time.perf_counter()
        elif process_state().is_main_process:
            store.restore_metrics(TRAIN / run.variant / str(replicate.number))
        if process_state().is_main_process:
            record = read_record(done / "training.json", TrainingRecord, f"train@{run.variant}")
            found.append(Finished(record, done / "adapter"))
    return found


def require_same(store: CheckpointStore) -> None:
    """Refuse to train in processes whose params, data, code or libraries differ from the main one's."""
    theirs = from_main(lambda: store.made_of)
    other = "; ".join(differences(theirs, store.made_of))
    agree(f"its machine has other {other} than the first one's" if other else None)


def order_of(rows: pa.Table, replicate: Replicate) -> np.ndarray | None:
    """The order in which a replicate sees the rows: the first in the file's, each other in a permutation of its own."""
    if replicate.number == 1:
        return None
    return np.random.default_rng(replicate.seed).permutation(rows.num_rows)


class Fit:
    """One replicate's training: its place on disk, its callbacks, and the record of what happened."""

    def __init__(
        self,
        run: Run,
        replicate: Replicate,
        store: CheckpointStore,
        tokenizer: PreTrainedTokenizerBase,
        started: float,
    ) -> None:
        self._run = run
        self._replicate = replicate
        self._store = store
        self._tokenizer = tokenizer
        self._main = process_state().is_main_process
        self._metrics = TRAIN / run.variant / str(replicate.number)
        folders = {"kept": store.kept, "metrics": self._metrics}
        self._checkpoints = Checkpoints(store, run.recipe.save_steps, folders, started)
        self._timer = ThroughputTimer()
        self._keep = KeepBest(run.recipe.keep, store.kept)
        self._tokens_at_start = 0

    def train(self, base: Model, rows: pa.Table, val: pa.Table) -> Path:
        """Train, and return the folder in the checkpoint store with the adapter, the metrics and the record."""
        model = base.with_adapter(self._run.lora, self._replicate.seed)
        for table in (rows, val):
            largest = pc.max(pc.list_flatten(table["input_ids"])).as_py()
            require_entries(model, largest, self._run.max_length)
        with ExitStack() as stack:
            live = writing = None
            if self._main:
                live = stack.enter_context(
                    Live(
                        str(self._metrics),
                        resume=bool(self._checkpoints.start),
                        save_dvc_exp=False,
                        dvcyaml=None,
                    )
                )
            else:
                writing = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            trainer = self._trainer(
                model, rows, val, live, writing or self._store.writing, "sharded" in base.decisions
            )
            if self._main:
                stack.enter_context(explaining_errors(self._store.folder))
            stack.enter_context(self._checkpoints.stopping_gently())
            trainer.train(resume_from_checkpoint=self._checkpoints.start)
        if self._main:
            record = self._record(trainer, rows, base.decisions)
            self._store.finish(self._metrics, lambda folder: write_record(folder / "training.json", record))
        return self._store.folder / FINISHED

    def _trainer(
        self,
        model: PeftModel,
        rows: pa.Table,
        val: pa.Table,
        live: Live | None,
        writing: Path,
        sharded: bool,
    ) -> TokenWeightedTrainer:
        """The trainer with its callbacks; where a checkpoint is resumed, they have their state back."""
        run = self._run
        stateful: dict[str, Stateful] = {"clock": self._timer, "keep": self._keep}
        callbacks: list[TrainerCallback] = [self._timer, self._keep]
        if live:
            callbacks.insert(1, DVCLiveLogger(live, self._timer))
        # One replicate's samples show the style; each costs a generation, in every process of a sharded model.
        if (self._main or sharded) and self._replicate.number == 1:
            samples = LiveSamples(
                self._tokenizer,
                self._metrics / "samples.jsonl",
                run.recipe.sample_every,
                self._replicate.seed,
            )
            callbacks.append(samples)
            stateful["samples"] = samples
        sharding: dict[str, Any] = {}
        kind = TokenWeightedTrainer
        if sharded:
            from stages.train.sharded_model import fsdp_arguments
            from stages.train.sharded_trainer import ShardedTrainer

            kind, sharding = ShardedTrainer, fsdp_arguments(model, run.recipe)
        trainer = build_trainer(
            model,
            self._tokenizer,
            training_arguments(run.recipe_of(self._replicate), self._replicate.seed, str(writing), sharding),
            as_dataset(rows, order_of(rows, self._replicate)),
            as_dataset(val),
            callbacks=callbacks,
            eval_batch_tokens=run.eval_batch_tokens,
            micro_batching=micro_batching_for(model, run.recipe, run.max_length),
            kind=kind,
            label=f"{run.variant}, replicate {self._replicate.number}",
        )
        trainer.max_length = run.max_length
        self._tokens_at_start = trainer.micro_batching.tokens
        trainer.add_callback(TerminateOnNonFinite(trainer, self._store.last_finite))
        if not self._checkpoints.start:  # otherwise the micro-batches are those that were found to fit
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
            kept=kept,
            final=final_losses(trainer.state.log_history),
            resumed_at=tuple(self._checkpoints.resumed_at),
            repeated_steps=trainer.repeated_steps,
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
            base_weights=decisions["base_weights"]
            + ("; split over the processes: " + decisions["sharded"] if "sharded" in decisions else ""),
            gradient_checkpointing=decisions["gradient_checkpointing"],
            micro_batching={"tokens_at_start": self._tokens_at_start} | asdict(trainer.micro_batching),
            schedule=describe(run.recipe),
            processes=process_state().num_processes,
            exposure=exposure(rows, run.recipe, order_of(rows, self._replicate)),
            replicates=(replicate,),
            published=self._replicate.number,
            versions=versions(),
            hardware=hardware(),
        )


def final_losses(history: list[dict[str, float]]) -> FinalLosses:
    """The last train and eval loss that the Trainer logged."""

    def last(key: str) -> float | None:
        """The last logged value of `key`; None where there is none."""
        return next((entry[key] for entry in reversed(history) if key in entry), None)

    return FinalLosses(train_loss=last("loss"), eval_loss=last("eval_loss"))
