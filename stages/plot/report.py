"""What the report says, put together once for both of its forms: HTML for reading, Markdown for a pull request."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from abctune.study.comparison import Comparison
from abctune.study.exposure import Confound
from abctune.study.inputs import Study
from abctune.study.origins import data_origins, made_with
from abctune.study.own_loss import own_rows_note
from abctune.study.preferences import preferences_of
from abctune.study.results import all_headlines
from abctune.study.served import Served
from abctune.study.statistics import LEVEL
from abctune.study.tasks import TaskComparison
from abctune.study.verdicts import Verdict
from stages.plot.cautions import limits_of, warnings_of
from stages.plot.colors import DARK, FAINT, INK, MUTED, PAPER
from stages.plot.figures import Chart, styles_of
from stages.plot.rows import (
    loss_rows,
    own_rows,
    quarantine_rows,
    reported,
    samples,
    task_rows,
    training_rows,
    verdict_blocks,
)
from stages.plot.templates import template

Report = dict[str, Any]  # what the templates know by name


def report_of(
    study: Study,
    comparison: Comparison,
    verdicts: list[Verdict],
    tasks: TaskComparison,
    served: list[Served],
    confounds: list[Confound],
    charts: Mapping[str, Chart],
) -> Report:
    """Everything that the templates show. It follows from the study alone: no date, no commit."""
    params = study.params
    return {
        "profile": params.profile,
        "seed": params.seed,
        "test_of": params.evaluation.test_of,
        "margin": params.evaluation.margin,
        "models": list(study.models),
        "variants": list(study.trained),
        "sources": study.sources,
        "styles": styles_of(study.trained),
        "base_model": next(iter(study.trained.values())).record.base_model.name,
        "comparison": comparison,
        "pairs": verdict_blocks(study, verdicts, confounds),
        "headlines": all_headlines(study, verdicts, comparison, tasks, served),
        "tasks": tasks,
        "own_checks": own_rows(study),
        "one_adapter": of_one_adapter(study, tasks, served),
        "task_rows": task_rows(study),
        "preferences": preferences_of(study),
        "served": served,
        "losses": loss_rows(study, comparison),
        "trained": {name: trained.record for name, trained in study.trained.items()},
        "confounds": confounds,
        "training": training_rows(study),
        "own_loss": own_rows_note(study),
        "formatted": quarantine_rows(study),
        "generation": {name: model.record.generation for name, model in study.models.items()},
        "samples": samples(study),
        "reported": reported(study, comparison),
        "warnings": warnings_of(study, comparison),
        "limits": limits_of(study, comparison),
        "origins": {"data": data_origins(study), "made_with": made_with(study)},
        "charts": charts,
        "dark": {"ink": DARK[INK], "muted": DARK[MUTED], "line": DARK[FAINT], "paper": DARK[PAPER]},
        "level": LEVEL,
    }


def of_one_adapter(study: Study, tasks: TaskComparison, served: list[Served]) -> list[str]:
    """What of the report the published adapters alone made, in words: replicates did not answer, nor were they served."""
    parts = {
        "tasks": bool(tasks.sets),
        "people's votes": bool(preferences_of(study).strengths),
        "results as served": bool(served),
    }
    return [name for name, there in parts.items() if there]


def render_html(report: Report) -> str:
    """The self-contained page."""
    return template("report.html.jinja").render(report)


def render_markdown(report: Report) -> str:
    """The same for a pull request, without figures and answers."""
    return re.sub(r"\n{3,}", "\n\n", template("report.md.jinja").render(report))
