"""Checks on a source's own test rows: which rows a variant wins and loses, and how each label is found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from abctune.core.params import BASE
from abctune.core.records import OwnCheckSummary, TaskRecord
from abctune.study.comparison import pairs_of
from abctune.study.inputs import Study
from abctune.study.tasks import TaskComparison


@dataclass(frozen=True)
class Flip:
    """A row that one of two models passes and the other does not."""

    ours: TaskRecord
    theirs: TaskRecord


@dataclass(frozen=True)
class Flips:
    """The rows on which two models differ."""

    model: str
    reference: str
    won: list[Flip]
    lost: list[Flip]


@dataclass(frozen=True)
class LabelCount:
    """How often a label was the right one, was given, and was given correctly."""

    label: str
    n: int
    predicted: int
    correct: int

    @property
    def f1(self) -> float:
        """2 correct / (n + predicted): the harmonic mean of precision and recall, 0 where the label never occurs."""
        return 2 * self.correct / (self.n + self.predicted) if self.n + self.predicted else 0.0


@dataclass(frozen=True)
class SourceCheck:
    """All models on one source's check."""

    source: str
    kind: str  # as params.yaml names it
    flips: list[Flips]
    labels: dict[str, list[LabelCount]]  # by model; empty where the check is not a choice
    n: int
    parts: dict[
        str, dict[str, int]
    ]  # by model and part of the check (a call's name, its arguments): rows that hold it

    def by_label(self, models: Iterable[str]) -> dict[str, dict[str, LabelCount]]:
        """These models' counts by label and model."""
        counts = {name: {one.label: one for one in self.labels[name]} for name in models}
        labels = dict.fromkeys(label for of in counts.values() for label in of)
        return {
            label: {name: of.get(label, LabelCount(label, 0, 0, 0)) for name, of in counts.items()}
            for label in labels
        }

    @property
    def macro_f1(self) -> dict[str, float]:
        """The mean of the labels' F1 by model: rare labels count as much as common ones."""
        return {
            name: sum(one.f1 for one in counts) / len(counts)
            for name, counts in self.labels.items()
            if counts
        }


def source_checks(study: Study) -> list[SourceCheck]:
    """One entry for each source of evaluation.checks that was scored, in params.yaml's order."""
    found = []
    for source, check in study.params.evaluation.checks.items():
        tasks = {
            name: [task for task in model.tasks if task.source == source]
            for name, model in study.models.items()
        }
        if tasks[BASE]:
            flips = [flips_of(*pair, tasks[pair[0]], tasks[pair[1]]) for pair in pairs_of(list(tasks))]
            labels = (
                {name: label_counts(of, check.labels) for name, of in tasks.items()}
                if check.kind == "choice"
                else {}
            )
            found.append(SourceCheck(source, check.kind, flips, labels, len(tasks[BASE]), held_parts(tasks)))
    return found


def held_parts(tasks: Mapping[str, Sequence[TaskRecord]]) -> dict[str, dict[str, int]]:
    """By model, how many rows hold each part of a check; a part that could not be checked counts as failed."""
    parts = dict.fromkeys(part for of in tasks.values() for task in of for part in task.checks)
    return {
        name: {part: sum(task.checks.get(part, False) for task in of) for part in parts}
        for name, of in tasks.items()
    }


def flips_of(model: str, reference: str, ours: Sequence[TaskRecord], theirs: Sequence[TaskRecord]) -> Flips:
    """The rows on which two models differ, in the order asked."""
    pairs = [Flip(*pair) for pair in zip(ours, theirs, strict=True)]
    won = [pair for pair in pairs if pair.ours.passed and not pair.theirs.passed]
    lost = [pair for pair in pairs if pair.theirs.passed and not pair.ours.passed]
    return Flips(model, reference, won, lost)


def label_counts(tasks: Sequence[TaskRecord], labels: Sequence[str]) -> list[LabelCount]:
    """Per label that a held-out reply or an answer names. An answer that names none counts for none."""
    counts = [
        LabelCount(
            label,
            n=sum(task.expected == label for task in tasks),
            predicted=sum(task.predicted == label for task in tasks),
            correct=sum(task.expected == label == task.predicted for task in tasks),
        )
        for label in labels
    ]
    return [one for one in counts if one.n or one.predicted]


def own_summaries(
    checks: Sequence[SourceCheck], tasks: TaskComparison, model: str
) -> dict[str, OwnCheckSummary]:
    """A model's counts by source, for summary.json."""
    found = {}
    for check in checks:
        rate = tasks.rate(model, check.kind, check.source)
        flips = next((f for f in check.flips if (f.model, f.reference) == (model, BASE)), None)
        f1 = check.macro_f1.get(model)
        found[check.source] = OwnCheckSummary(
            n=rate.n,
            passed=rate.passed,
            won=len(flips.won) if flips else 0,
            lost=len(flips.lost) if flips else 0,
            macro_f1=None if f1 is None else round(f1, 4),
            vs_base=tasks.difference(model, BASE, check.kind, check.source).short if flips else None,
        )
    return found
