"""The whole comparison as one record: metrics/study.json, for the tools and the app."""

from __future__ import annotations

from abctune.core.records import (
    DifferenceRecord,
    ServedRecord,
    SetRecord,
    StudyRecord,
    TaskDifferenceRecord,
    TaskShareRecord,
    ValueRecord,
)
from abctune.study.comparison import Comparison
from abctune.study.coverage import untested
from abctune.study.inputs import Study
from abctune.study.preferences import preference_headlines, preferences_of
from abctune.study.served import Served, served_headlines
from abctune.study.tasks import TaskComparison, task_headlines
from abctune.study.verdicts import Verdict, headlines

DIGITS = 6  # of a loss in nats


def study_record(
    study: Study,
    comparison: Comparison,
    verdicts: list[Verdict],
    tasks: TaskComparison,
    served: list[Served],
) -> StudyRecord:
    """Put a comparison and its words into a record; it follows from the inputs alone."""
    return StudyRecord(
        profile=study.params.profile,
        test_of=study.params.evaluation.test_of,
        margin=comparison.margin,
        replicated=comparison.replicated,
        replicates=comparison.replicates,
        headlines=tuple(all_headlines(study, verdicts, comparison, tasks, served)),
        sets=tuple(
            SetRecord(name=s.name, n=s.n, n_groups=s.n_groups, n_supervised=s.n_supervised)
            for s in comparison.sets
        ),
        values=values_of(comparison),
        differences=tuple(difference_record(v) for v in verdicts),
        tasks=tuple(
            TaskShareRecord(model=r.model, **r.on._asdict(), n=r.n, passed=r.passed, low=r.low, high=r.high)
            for r in tasks.rates
        ),
        task_differences=task_differences_of(tasks),
        served=tuple(served_record(one) for one in served),
    )


def all_headlines(
    study: Study,
    verdicts: list[Verdict],
    comparison: Comparison,
    tasks: TaskComparison,
    served: list[Served],
) -> list[str]:
    """What to know if one reads nothing else: first, what the verdicts leave out."""
    warnings = [f"Warning: {line}" for line in untested(study).values()]
    return [
        *warnings,
        *headlines(verdicts, comparison),
        *task_headlines(tasks),
        *preference_headlines(preferences_of(study)),
        *served_headlines(served),
    ]


def values_of(comparison: Comparison) -> tuple[ValueRecord, ...]:
    """Every model's value on every set."""
    return tuple(
        ValueRecord(
            metric=v.metric.name,
            model=v.model,
            on=v.on.name,
            value=round(v.value, DIGITS),
            low=rounded(v.low),
            high=rounded(v.high),
            by_replicate=tuple(round(x, DIGITS) for x in v.by_replicate),
        )
        for v in comparison.values
    )


def difference_record(verdict: Verdict) -> DifferenceRecord:
    """A difference and its words."""
    d = verdict.difference
    return DifferenceRecord(
        metric=d.metric.name,
        model=d.model,
        reference=d.reference,
        on=d.on.name,
        value=round(d.value, DIGITS),
        low=rounded(d.low),
        high=rounded(d.high),
        p=rounded(d.p),
        p_holm=rounded(d.p_holm),
        replicate_sd=rounded(d.replicate_sd),
        by_replicate=tuple(round(x, DIGITS) for x in d.by_replicate),
        outcome=d.outcome,
        short=verdict.short,
        text=verdict.text,
    )


def task_differences_of(tasks: TaskComparison) -> tuple[TaskDifferenceRecord, ...]:
    """Every pair on every set of tasks."""
    return tuple(
        TaskDifferenceRecord(
            model=d.model,
            reference=d.reference,
            **d.on._asdict(),
            value=d.value,
            low=d.low,
            high=d.high,
            p_holm=d.p_holm,
            outcome=d.outcome,
            text=d.text,
        )
        for d in tasks.differences
    )


def served_record(one: Served) -> ServedRecord:
    """A published adapter on one base format."""
    return ServedRecord(
        model=one.model,
        format=one.format,
        judged=round(one.judged, DIGITS),
        served=round(one.served, DIGITS),
        value=round(one.value, DIGITS),
        low=rounded(one.low),
        high=rounded(one.high),
        gain=rounded(one.gain),
        outcome=one.outcome,
        text=one.text,
    )


def rounded(x: float | None) -> float | None:
    """To DIGITS decimals; None stays None."""
    return None if x is None else round(x, DIGITS)
