"""Each variant's complete model card: what it is, what it was made from and how, and how it compares with its siblings.

train leaves a note next to the adapter (abctune/core/card.py); this is the card that `python -m tools.publish` sends out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from abctune.core.card import built_with, front_matter, title
from abctune.core.params import BASE
from abctune.study.comparison import Comparison
from abctune.study.exposure import Confound
from abctune.study.inputs import Study
from abctune.study.own import source_checks
from abctune.study.served import Served
from abctune.study.tasks import TaskComparison
from abctune.study.verdicts import Verdict, forgetting
from stages.plot.cautions import limits_of
from stages.plot.rows import part_counts
from stages.plot.templates import template


def card(
    variant: str,
    study: Study,
    comparison: Comparison,
    verdicts: Sequence[Verdict],
    tasks: TaskComparison,
    served: Sequence[Served],
    confounds: Sequence[Confound],
) -> str:
    """The card's Markdown, front matter included. Nothing in it depends on when or where the stage ran."""
    record = study.trained[variant].record
    base = record.base_model
    mine = [v for v in verdicts if variant in v.difference.pair]
    return template("card.md.jinja").render(
        front_matter=front_matter(base, study.origins.values()),
        title=title(variant, base),
        llama=built_with(base),
        variant=variant,
        profile=study.params.profile,
        base=base,
        sources=source_rows(variant, study),
        record=record,
        published=record.published_replicate,
        losses=[(name, [comparison.value(name, on.name) for on in comparison.sets]) for name in study.models],
        comparison=comparison,
        test_of=study.params.evaluation.test_of,
        verdicts=mine,
        forgets=forgetting([v for v in mine if v.difference.model == variant]),
        served=[one for one in served if one.model == variant],
        causes=[c for c in confounds if variant in (c.model, c.reference)],
        tasks=tasks,
        task_verdicts=[d for d in tasks.differences if variant in (d.model, d.reference)],
        parts=part_tables(variant, study),
        labels=label_tables(variant, study),
        warnings=record.schedule.warnings,
        limits=limits_of(study, comparison),
    )


def part_tables(variant: str, study: Study) -> list[dict[str, Any]]:
    """Per source whose check has several parts, as a call's tool and its arguments: rows that hold each."""
    found = [(check, part_counts(check)) for check in source_checks(study)]
    return [
        {"source": check.source, "n": check.n, "counts": {name: counts[name] for name in (BASE, variant)}}
        for check, counts in found
        if counts
    ]


def label_tables(variant: str, study: Study) -> list[dict[str, Any]]:
    """Per source whose check is a choice among labels: each label's counts, of base and of the variant."""
    models = (BASE, variant)
    tables = []
    for check in source_checks(study):
        if check.labels:
            rows = {label: list(of.values()) for label, of in check.by_label(models).items()}
            scores = [check.macro_f1.get(name) for name in models]
            tables.append({"source": check.source, "models": models, "rows": rows, "macro_f1": scores})
    return tables


def source_rows(variant: str, study: Study) -> list[dict[str, Any]]:
    """One row per source of the mix: where it is from and how much of it the variant has seen."""
    trained = study.trained[variant]
    exposure = trained.record.exposure
    return [
        {
            "source": name,
            "name": drawn.source.name,
            "pin": drawn.source.pin,
            "license": drawn.source.license,
            "drawn": drawn.drawn,
            "seen": exposure.conversations.get(name, 0),
            "supervised": exposure.supervised_tokens.get(name, 0),
        }
        for name, drawn in trained.mixed.sources.items()
    ]
