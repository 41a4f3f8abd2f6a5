"""The outputs of a finished training: the published adapter, every replicate's adapter, and their record."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from abctune.core.adapters import CONFIG, WEIGHTS
from abctune.core.card import note
from abctune.core.files import atomic_output
from abctune.core.params import Params
from abctune.core.places import MODELS, REPLICATES, TRAIN
from abctune.core.records import TrainingRecord, write_record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Finished:
    """One trained replicate: its record (of this replicate alone) and the folder that holds its adapter."""

    record: TrainingRecord
    adapter: Path

    @property
    def number(self) -> int:
        """Which replicate, from 1."""
        return self.record.replicates[0].replicate


def variant_record(records: Sequence[TrainingRecord], publish: str, at_once: int = 1) -> TrainingRecord:
    """The replicates' records as one, with the replicate to publish chosen.

    Args:
        publish: `first`, chosen before any loss is seen; or `lowest_eval_loss`, by the loss on the variant's own
            validation rows. Never by test rows, on which the published adapter is judged.
        at_once: how many trained at the same time.
    """
    replicates = tuple(one for record in records for one in record.replicates)
    chosen = replicates[0]
    if publish == "lowest_eval_loss":
        # abctune.core.params refuses a recipe that never evaluates.
        losses = {one.final.eval_loss: one for one in reversed(replicates) if one.final.eval_loss is not None}
        chosen = losses[min(losses)]
    changed = {"replicates": replicates, "published": chosen.replicate, "at_once": at_once}
    return records[0].model_copy(update=changed)


def publish(
    finished: Sequence[Finished], record: TrainingRecord, tokenizer: PreTrainedTokenizerBase, params: Params
) -> None:
    """Write models/<variant>, models/replicates/<variant> and metrics/train/<variant>/training.json, each as a whole."""
    with atomic_output(REPLICATES / record.variant) as folder:
        for one in finished:
            (folder / str(one.number)).mkdir(parents=True)
            for name in (WEIGHTS, CONFIG):
                shutil.copy(one.adapter / name, folder / str(one.number))
    chosen = next(one for one in finished if one.number == record.published)
    with atomic_output(MODELS / record.variant) as folder:
        shutil.copytree(chosen.adapter, folder)
        tokenizer.save_pretrained(folder)
        write_record(folder / "training.json", record)
        (folder / "README.md").write_text(note(record, params.profile), encoding="utf-8")
    write_record(TRAIN / record.variant / "training.json", record)
