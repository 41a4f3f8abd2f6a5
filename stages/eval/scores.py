"""Loss and perplexity per source and overall, from the nll of each conversation of each replicate."""

from __future__ import annotations

import math

import pyarrow as pa
import pyarrow.compute as pc

from abctune.core.records import GENERAL, EvalRecord, Score


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


def lines_of(record: EvalRecord) -> list[str]:
    """The result for people."""
    losses = [*record.sources.items(), ("all", record.overall)]
    scored = "" if record.replicates == 1 else f" and {record.replicates} replicates"
    return (
        [
            f"{record.model} {source}: loss {score.loss:.4f} nats over {score.n_conversations:,} conversations{scored}"
            for source, score in losses
        ]
        + [
            f"{record.model} {kind}: {rate.passed} of {rate.n} tasks passed"
            for kind, rate in record.tasks.items()
        ]
        + [
            f"{record.model} {source}: {rate.passed} of {rate.n} rows pass its check"
            for source, rate in record.own_checks.items()
        ]
    )
