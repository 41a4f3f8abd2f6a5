"""`metrics.json` of a model: what was measured, in one typed record."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from abctune.core.params import Params
from abctune.core.provenance import peak_reserved_gib, peak_rss_gib
from abctune.core.records import EvalRecord, EvalResources, SampleRecord, TaskRecord
from abctune.llm.tokenizer import template_hash
from stages.eval.generation import summarise
from stages.eval.replicates import METRIC_RECORDS
from stages.eval.scores import scores
from stages.eval.tasks import pass_rates

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def record_of(
    name: str,
    params: Params,
    tokenizer: PreTrainedTokenizerBase,
    conversations: pa.Table,
    published: int,
    samples: Sequence[SampleRecord],
    tasks: Sequence[TaskRecord],
    started: float,
) -> EvalRecord:
    """A model's record.

    Args:
        conversations: sums per replicate and conversation, as in conversations.parquet.
        published: the replicate that was asked.
        samples, tasks: the lines of samples.jsonl and tasks.jsonl.
        started: `time.perf_counter()` at the stage's start.
    """
    overall, sources = scores(conversations)
    return EvalRecord(
        model=name,
        test_of=params.evaluation.test_of,
        metrics=METRIC_RECORDS,
        replicates=len(conversations["replicate"].unique()),
        published=published,
        chat_template_sha256=template_hash(tokenizer),
        overall=overall,
        sources=sources,
        generation=summarise(samples),
        tasks=pass_rates(tasks, "kind"),
        own_checks=pass_rates(tasks, "source"),
        resources=EvalResources(
            seconds=round(time.perf_counter() - started, 2),
            peak_rss_gib=round(peak_rss_gib(), 3),
            peak_reserved_gib=peak_reserved_gib(),
        ),
    )
