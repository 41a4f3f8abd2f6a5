"""Ranks other than the main one: they compute their share of every step and write nothing."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from abctune.core.errors import UserError
from abctune.core.params import Params
from abctune.llm.tokenizer import load_tokenizer
from stages.train.checkpoints import differences, identity
from stages.train.data import as_dataset, load_subset
from stages.train.processes import Processes
from stages.train.recipe import Replicate, Run

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase


def train_worker(run: Run, params: Params, processes: Processes) -> None:
    """Train every replicate along with the main rank.

    Raises:
        UserError: this machine would train something else, or does not see the main rank's checkpoint.
    """
    rows, val = load_subset(run.variant, "train"), load_subset(run.variant, "val")
    from stages.train.fit import FINISHED, Base, in_order  # isort: skip  (imports Unsloth first)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    base, tokenizer = (
        Base(run.recipe, run.max_length),
        load_tokenizer(**params.active.model.template),
    )
    for replicate in run.replicates:
        processes.begin(replicate.number)
        checkpoint = _agreed_checkpoint(run, params, replicate, processes)
        if checkpoint == FINISHED:
            continue
        model = base.with_adapter(run.lora, replicate.seed)
        datasets = as_dataset(in_order(rows, replicate)), as_dataset(val)
        _train_one(run, replicate, model, tokenizer, datasets, checkpoint, processes)


def _agreed_checkpoint(run: Run, params: Params, replicate: Replicate, processes: Processes) -> str | None:
    theirs = processes.receive("identity")
    if other := "; ".join(differences(theirs, identity(run, params, replicate))):
        raise UserError(f"its machine has other {other} than the first one's")
    checkpoint = processes.receive("checkpoint")
    from stages.train.fit import FINISHED

    if checkpoint not in (None, FINISHED) and not Path(checkpoint).is_dir():
        raise UserError(
            f"it cannot go on from {checkpoint}, which its machine lacks: let the machines share the folder "
            "checkpoints/, or delete it on the first one to start again"
        )
    return checkpoint


def _train_one(
    run: Run,
    replicate: Replicate,
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    datasets: tuple[Dataset, Dataset],
    checkpoint: str | None,
    processes: Processes,
) -> None:
    from stages.train.micro_batching import micro_batching_for
    from stages.train.trainer import Probe, build_trainer, training_arguments

    with tempfile.TemporaryDirectory() as nothing:
        trainer = build_trainer(
            model,
            tokenizer,
            training_arguments(run.recipe_of(replicate), replicate.seed, output_dir=nothing),
            datasets[0],
            datasets[1],
            callbacks=[],
            eval_batch_tokens=run.eval_batch_tokens,
            micro_batching=micro_batching_for(model, run.recipe, run.max_length),
            processes=processes,
        )
        if not checkpoint:
            trainer.add_callback(Probe(trainer, run.max_length))
        processes.ready()
        trainer.train(resume_from_checkpoint=checkpoint)
