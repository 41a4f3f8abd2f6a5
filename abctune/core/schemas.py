"""The columns of the Parquet files that one stage writes and another reads, as Arrow schemas."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from abctune.core.records import Metric

# metrics/eval/<model>/conversations.parquet, before any metric: one row per (replicate, conversation).
SCORED_ROWS = pa.schema(
    {
        "id": pa.string(),
        "group": pa.string(),  # rows of a group share text, so they count as one
        "source": pa.string(),  # "general": text that no variant trained on
        "replicate": pa.int32(),  # from 1; base has 1 alone
    }
)
# metrics/eval/<model>/served.parquet: the published adapter on each base format that is served.
SERVED = pa.schema(
    {
        "id": pa.string(),
        "group": pa.string(),
        "source": pa.string(),
        "format": pa.string(),  # "4bit", "16bit", or the exported file's name
        "nll": pa.float64(),
        "n_supervised": pa.int32(),
    }
)
WEIGHTS = {"n_supervised": pa.int32()}  # a weight that counts; every other metric column is a float


def conversations_schema(metrics: Sequence[Metric]) -> pa.Schema:
    """Schema of conversations.parquet: SCORED_ROWS, then each metric's sum and weight column once."""
    columns = dict.fromkeys(column for metric in metrics for column in (metric.sum, metric.weight))
    fields = [pa.field(name, WEIGHTS.get(name, pa.float64())) for name in columns]
    return pa.schema([*SCORED_ROWS, *fields])
