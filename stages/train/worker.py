"""What the processes beside the first do: their share of every step, and nothing that anyone sees."""

from __future__ import annotations

import tempfile
from pathlib import Path

from abctune.core.errors import UserError
from abctune.core.params import Params
from abctune.llm.chat import BASE_MODEL, load_tokenizer
from stages.train.checkpoints import differences, identity
from stages.train.data import as_dataset, load_subset
from stages.train.processes import Processes


def follow(variant: str, params: Params, processes: Processes) -> None:
    """Train along with the first process.

    Raises:
        UserError: this machine would train something else, or does not see the first one's checkpoint.
    """
    recipe, max_length = params.train_of(variant), params.active.data.max_length
    rows, val = load_subset(variant, "train"), load_subset(variant, "val")

    from stages.train.model import load_for_training  # isort: skip  (first, see there)
    from transformers.utils.logging import disable_progress_bar

    from abctune.llm.device import resolve_dtype
    from stages.train.micro_batching import micro_batching_for
    from stages.train.trainer import Probe, build_trainer, training_arguments

    theirs = processes.receive("identity")
    if other := "; ".join(differences(theirs, identity(params, variant, str(resolve_dtype(recipe.dtype))))):
        raise UserError(f"its machine has other {other} than the first one's")
    checkpoint = processes.receive("checkpoint")
    if checkpoint and not Path(checkpoint).is_dir():
        raise UserError(
            f"it cannot go on from {checkpoint}, which its machine lacks: let the machines share the folder "
            "checkpoints/, or delete it on the first one to start again"
        )
    disable_progress_bar()
    model, _ = load_for_training(BASE_MODEL, recipe, params.lora, max_length, params.seed)
    with tempfile.TemporaryDirectory() as nothing:
        trainer = build_trainer(
            model,
            load_tokenizer(**params.active.model.template),
            training_arguments(recipe, params.seed, output_dir=nothing),
            as_dataset(rows),
            as_dataset(val),
            callbacks=[],
            eval_batch_tokens=params.active.eval.batch_tokens,
            cut=micro_batching_for(model, recipe, max_length),
            processes=processes,
        )
        if not checkpoint:
            trainer.add_callback(Probe(trainer, max_length))
        processes.ready()
        trainer.train(resume_from_checkpoint=checkpoint)
