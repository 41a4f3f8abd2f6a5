"""Loss and perplexity per source and overall, from the nll of each conversation of each replicate."""

from __future__ import annotations

import math

import pyarrow as pa
import pyarrow.compute as pc

from abctune.core.records import GENERAL, Score


def score(rows: pa.Table) -> Score:
    """Token-weighted: loss = sum(nll) / sum(n_supervised) in nats, perplexity = exp(loss).

    Args:
        rows: columns `replicate`, `nll`, `n_supervised`; every replicate has the same conversations.
    """
    replicates = len(rows["replicate"].unique())
    supervised = sum(rows["n_supervised"].to_pylist())
    loss = math.fsum(rows["nll"].to_pylist()) / supervised
    return Score(
        loss=loss,
        perplexity=math.exp(loss),
        n_conversations=rows.num_rows // replicates,
        n_supervised=supervised // replicates,
    )


def scores(rows: pa.Table) -> tuple[Score, dict[str, Score]]:
    """Overall (general text left out) and by source (general text last, where it was scored)."""
    names = sorted(set(rows["source"].to_pylist()), key=lambda name: (name == GENERAL, name))
    by_source = {name: score(rows.filter(pc.equal(rows["source"], name))) for name in names}
    return score(rows.filter(pc.not_equal(rows["source"], GENERAL))), by_source
