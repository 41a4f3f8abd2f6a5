"""All adapters of a variant, one after the other on one loaded base."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from abctune.core.errors import UserError
from abctune.core.files import read_json
from abctune.core.records import Metric, TrainingRecord, read_record
from abctune.core.schemas import conversations_schema
from abctune.llm.inference import load_for_inference, replace_adapter
from abctune.llm.likelihood import conversation_sums
from stages.eval.fused import fuse_adapter
from stages.eval.metrics import METRICS

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

MODELS = Path("models")
METRIC_RECORDS: tuple[Metric, ...] = tuple(metric.record for metric in METRICS)


class Adapters:
    """A variant's adapters: the published one first, then the other replicates in their order.

    Raises:
        UserError: an adapter is missing, or they are not of one recipe.
    """

    def __init__(self, variant: str) -> None:
        self.folder = MODELS / variant
        made_by = f"train@{variant}"
        record = read_record(self.folder / "training.json", TrainingRecord, made_by)
        self.published = record.published
        self.numbers = tuple(sorted(one.replicate for one in record.replicates))
        self._places = {number: MODELS / "replicates" / variant / str(number) for number in self.numbers}
        settings = [_settings(place, made_by) for place in self._places.values()]
        if any(one != settings[0] for one in settings):
            raise UserError(
                f"{MODELS}/replicates/{variant} holds adapters of several recipes; run `dvc repro --force {made_by}`"
            )

    def load(self, dtype: torch.dtype) -> PreTrainedModel:
        """The base with the published adapter on it."""
        model = load_for_inference(dtype, self.folder)
        _fuse_on_gpu(model)
        return model

    def others(self, model: PreTrainedModel) -> Iterator[int]:
        """Put each other replicate's adapter on the loaded model, and yield its number while it is there."""
        for number, place in self._places.items():
            if number != self.published:
                replace_adapter(model, place)
                _fuse_on_gpu(model)
                yield number


def _settings(adapter: Path, made_by: str) -> dict[str, Any]:
    """PEFT's settings of an adapter; it writes the set of target modules in no certain order."""
    settings: dict[str, Any] = read_json(adapter / "adapter_config.json", made_by)
    modules = settings["target_modules"]
    return settings | {"target_modules": sorted(modules) if isinstance(modules, list) else modules}


def _fuse_on_gpu(model: PreTrainedModel) -> None:
    if model.device.type == "cuda":
        fuse_adapter(model)


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
