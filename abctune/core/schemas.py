"""The columns of the Parquet files that one stage writes and another reads, as Arrow schemas."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from abctune.core.records import Metric

# Column `problem` of data/raw and data/mixed: what is wrong with a row in its file.
NOT_UTF8, UNEVEN_ROW = "not UTF-8", "not as many cells as columns"

# data/formatted/<variant>/rows.parquet and data/split/<variant>/<side>.parquet: one row per example.
FORMATTED_ROWS = pa.schema(
    {
        "id": pa.string(),  # unique; "<conversation>-<turn>" where every reply is an example of its own
        "group": pa.string(),  # stays on one side of the split
        "source": pa.string(),
        "messages": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
        # JSON: the tools; per message its calls and reasoning; which are supervised, if not every reply. Null: none of these
        "extra": pa.string(),
        "input_ids": pa.list_(pa.int32()),
        "labels": pa.list_(pa.int32()),
        "n_tokens": pa.int32(),
        "n_supervised": pa.int32(),
    }
)
# data/formatted/<variant>/quarantine.parquet: the records that cannot be used.
QUARANTINE = pa.schema(
    {"source": pa.string(), "row": pa.int64(), "reason": pa.string(), "record": pa.string()}
)
# metrics/eval/<model>/conversations.parquet, before any metric: one row per (replicate, conversation).
SCORED_ROWS = pa.schema(
    {
        "id": pa.string(),
        "group": pa.string(),  # rows of a group share text, so they count as one
        "source": pa.string(),  # "general": text that no variant trained on
        "replicate": pa.int32(),  # from 1; base has 1 alone
    }
)
# The published adapter as it is served: on each base format (metrics/eval/<model>/served.parquet), and as each exported
# file (metrics/served/<variant>/<format>.parquet).
SERVED = pa.schema(
    {
        "id": pa.string(),
        "group": pa.string(),
        "source": pa.string(),
        "format": pa.string(),  # "4bit" or "16bit" of the base; of an exported file merged_16bit, f16, q8_0 or q4_k_m
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
