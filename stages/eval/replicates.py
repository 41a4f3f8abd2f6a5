"""All adapters of a variant, one after the other in one process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
from peft import PeftModel

from abctune.core.errors import UserError
from abctune.core.files import read_json
from abctune.core.params import BASE
from abctune.core.places import MODELS, REPLICATES
from abctune.core.records import Metric, TrainingRecord, read_record
from abctune.core.schemas import conversations_schema
from abctune.llm.inference import load_for_inference, replace_adapter
from abctune.llm.likelihood import conversation_sums
from stages.eval.fused import fuse_adapter
from stages.eval.metrics import METRICS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

METRIC_RECORDS: tuple[Metric, ...] = tuple(metric.record for metric in METRICS)


class Adapters:
    """A variant's adapters; `numbers` has the published one first, then the other replicates in their order.

    Raises:
        UserError: an adapter is missing, or they are not of one recipe.
    """

    def __init__(self, variant: str) -> None:
        self.folder = MODELS / variant
        made_by = f"train@{variant}"
        record = read_record(self.folder / "training.json", TrainingRecord, made_by)
        self.published = record.published
        numbers = sorted((one.replicate for one in record.replicates), key=lambda n: (n != self.published, n))
        self.numbers = tuple(numbers)
        self._places = {number: REPLICATES / variant / str(number) for number in self.numbers}
        settings = [_settings(place, made_by) for place in self._places.values()]
        self._model: PreTrainedModel | None = None
        if any(one != settings[0] for one in settings):
            raise UserError(
                f"{REPLICATES}/{variant} holds adapters of several recipes; run `dvc repro --force --single-item {made_by}`"
            )

    def model(self, number: int, dtype: torch.dtype) -> PreTrainedModel:
        """The base with a replicate's adapter, ready to score. The model given before is no longer valid."""
        before, self._model = self._model, None
        if isinstance(before, PeftModel):
            replace_adapter(before, self._places[number])
            self._model = prepared(before)
        else:  # none, or merged: reading the base's weights again takes a second; never two models in memory
            del before
            self._model = prepared(load_for_inference(dtype, self._places[number]))
        return self._model


class NoAdapters:
    """The untuned base, in the place of a variant's adapters: one model, which counts as replicate 1."""

    folder = None
    published = 1
    numbers = (1,)

    def model(self, _number: int, dtype: torch.dtype) -> PreTrainedModel:
        """The base, ready to score."""
        return load_for_inference(dtype)


def adapters_of(name: str) -> Adapters | NoAdapters:
    """What is to be scored of a model: a variant's adapters, or none on the base."""
    return NoAdapters() if name == BASE else Adapters(name)


def _settings(adapter: Path, made_by: str) -> dict[str, Any]:
    """PEFT's settings of an adapter; it writes the set of target modules in no certain order."""
    settings: dict[str, Any] = read_json(adapter / "adapter_config.json", made_by)
    modules = settings["target_modules"]
    return settings | {"target_modules": sorted(modules) if isinstance(modules, list) else modules}


def prepared(model: PeftModel) -> PreTrainedModel:
    """The same model made faster: on a GPU the adapter's products fused with the base's, in float32 merged into its weights.

    Merging moves a conversation's nll by 1e-6 of itself and saves a quarter of the time on a CPU (docs/performance.md).
    In 16 bits it would round the sum of both, which moves what is measured.
    """
    if model.device.type == "cuda":
        fuse_adapter(model)
    elif model.dtype == torch.float32:
        return model.merge_and_unload()
    return model


def measured(model: PreTrainedModel, rows: pa.Table, replicate: int, batch_tokens: int) -> pa.Table:
    """The rows with every metric's columns, as conversations.parquet has them.

    Args:
        rows: columns `id`, `group`, `source`, `input_ids`, `labels`, `n_supervised`.
    """
    ids, labels = rows["input_ids"].to_pylist(), rows["labels"].to_pylist()
    measures = {metric.record.sum: metric.of_tokens for metric in METRICS}
    sums = conversation_sums(model, ids, labels, batch_tokens, measures)
    columns = {name: rows[name] for name in ("id", "group", "source", "n_supervised")}
    columns |= {"replicate": pa.array([replicate] * rows.num_rows, pa.int32()), **sums}
    schema = conversations_schema(METRIC_RECORDS)
    return pa.table(columns).select(schema.names).cast(schema)
