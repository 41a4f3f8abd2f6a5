"""Loss and perplexity per source and overall, from the nll of each conversation."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa


def losses(conversations: pa.Table) -> dict[str, Any]:
    """Token-weighted: loss = sum(nll) / sum(n_supervised) in nats, perplexity = exp(loss).

    Args:
        conversations: columns `source`, `nll`, `n_supervised`.
    """
    by_source = conversations.group_by("source").aggregate(
        [("nll", "sum"), ("n_supervised", "sum"), ("nll", "count")]
    )
    sources = {
        row["source"]: _scores(row["nll_sum"], row["n_supervised_sum"], row["nll_count"])
        for row in sorted(by_source.to_pylist(), key=lambda row: row["source"])
    }
    overall = _scores(
        math.fsum(conversations["nll"].to_pylist()),
        sum(conversations["n_supervised"].to_pylist()),
        len(conversations),
    )
    return {"sources": sources, "overall": overall}


def _scores(nll: float, n_supervised: int, n_conversations: int) -> dict[str, Any]:
    loss = nll / n_supervised
    return {
        "loss": loss,
        "perplexity": math.exp(loss),
        "n_conversations": n_conversations,
        "n_supervised": n_supervised,
    }
