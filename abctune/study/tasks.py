"""The comparison on tasks that a program checks: each model's pass rate, and every pair's difference, item by item.

The published adapters answer, one of each variant: what is shown here holds for them, not for the recipes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from abctune.core.shares import wilson
from abctune.study import statistics
from abctune.study.comparison import pairs_of
from abctune.study.inputs import Study
from abctune.study.statistics import ALPHA
from abctune.study.verdicts import sentence
from abctune.study.wording import adapter_of, interval, sorted_by_size

TaskOutcome = Literal["better", "worse", "not shown"]
ONE_ADAPTER = "One adapter of each variant answered the tasks: nothing is said about the recipes."
KINDS = {"instructions": "instruction", "code": "code repair"}  # as eval names them, and one in words


class TaskSet(NamedTuple):
    """Tasks that are counted together: a kind of the project's own, or one source's check."""

    kind: str
    source: str | None = None

    def words(self, n: int) -> str:
        """What `n` of its tasks are, in words, without the number."""
        one = KINDS.get(self.kind, self.kind) if self.source is None else "row"
        many = one if n == 1 else f"{one}s"
        return many if self.source is None else f"{many} of the check on {self.source}"


@dataclass(frozen=True)
class PassRate:
    """How many of one kind of task a model passes, with the 95 % interval of the share."""

    model: str
    on: TaskSet
    n: int
    passed: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """The share passed, 0 to 1."""
        return self.passed / self.n


@dataclass(frozen=True)
class TaskDifference:
    """pass(model) - pass(reference) on the same tasks: above 0, `model` passes more."""

    model: str
    reference: str
    on: TaskSet
    n: int
    model_only: int  # tasks that only `model` passed
    reference_only: int
    value: float
    low: float
    high: float
    p: float
    p_holm: float = 1.0

    @property
    def outcome(self) -> TaskOutcome:
        """Better or worse where the interval and Holm's step both leave 0 out."""
        if self.low <= 0 <= self.high or self.p_holm >= ALPHA:
            return "not shown"
        return "better" if self.value > 0 else "worse"

    @property
    def short(self) -> str:
        """For `dvc exp show`: "one run: better by 0.25 [0.05, 0.43]"."""
        if self.outcome == "not shown":
            return f"one run: not shown {interval(self.value, self.low, self.high)}"
        return f"one run: {self.outcome} by {interval(*sorted_by_size(self.value, self.low, self.high))}"

    @property
    def text(self) -> str:
        """The verdict as a sentence about the two adapters that answered."""
        model, reference = adapter_of(self.model), adapter_of(self.reference)
        what, size = self.on.words(self.n), f"n = {self.n:,}"
        counts = (
            f"{self.model_only} passed by {self.model} only, {self.reference_only} by {self.reference} only"
        )
        if self.outcome != "not shown":
            more = "more" if self.outcome == "better" else "fewer"
            amount = interval(*sorted_by_size(self.value, self.low, self.high))
            return sentence(
                f"{model} passes {more} {what} than {reference}: the share differs by {amount}, {size} ({counts})."
            )
        amount = f"{self.model} − {self.reference} = {interval(self.value, self.low, self.high)}"
        reason = "the interval contains 0"
        if not self.low <= 0 <= self.high:
            reason = f"p = {self.p_holm:.2g} after correction, though the interval alone leaves out 0"
        return sentence(
            f"{model} against {reference} on {what}: not shown: {reason} ({amount}, {size}; {counts})."
        )


@dataclass(frozen=True)
class TaskComparison:
    """Every model's pass rates, and the paired differences between models."""

    rates: list[PassRate]
    differences: list[TaskDifference]

    @property
    def sets(self) -> list[TaskSet]:
        """The sets of tasks, in the order in which they were asked."""
        return list(dict.fromkeys(rate.on for rate in self.rates))

    def rate(self, model: str, kind: str, source: str | None = None) -> PassRate:
        """A model's pass rate on one set of tasks."""
        return next(rate for rate in self.rates if (rate.model, rate.on) == (model, (kind, source)))

    def difference(self, model: str, reference: str, kind: str, source: str | None = None) -> TaskDifference:
        """The difference of two models on one set of tasks."""
        wanted = (model, reference, (kind, source))
        return next(d for d in self.differences if (d.model, d.reference, d.on) == wanted)


def compare_tasks(study: Study) -> TaskComparison:
    """All rates and differences; Holm's correction is for all task differences, a family apart from the losses'."""
    passed: dict[TaskSet, dict[str, list[bool]]] = {}  # -> model -> one entry per task, in the same order
    for name, model in study.models.items():
        for task in model.tasks:
            passed.setdefault(TaskSet(task.kind, task.source), {}).setdefault(name, []).append(task.passed)
    rates, differences = [], []
    for on, models in passed.items():
        for name, held in models.items():
            limits = wilson(sum(held), len(held))
            rates.append(PassRate(name, on, len(held), sum(held), *limits))
        differences += [
            difference(on, model, models[model], reference, models[reference])
            for model, reference in pairs_of(list(models))
        ]
    adjusted = statistics.holm([d.p for d in differences])
    return TaskComparison(rates, [replace(d, p_holm=p) for d, p in zip(differences, adjusted, strict=True)])


def difference(
    on: TaskSet, model: str, ours: list[bool], reference: str, theirs: list[bool]
) -> TaskDifference:
    """The paired difference of two models' passes on the same set of tasks."""
    pairs = list(zip(ours, theirs, strict=True))
    counts = [
        pairs.count(outcome) for outcome in ((True, True), (True, False), (False, True), (False, False))
    ]
    value, low, high = statistics.paired_shares(*counts)
    p = statistics.mcnemar(counts[1], counts[2])
    return TaskDifference(model, reference, on, len(pairs), counts[1], counts[2], value, low, high, p)


def task_headlines(comparison: TaskComparison) -> list[str]:
    """A line for each difference that is shown, or one that none is, per set of tasks."""
    lines = []
    for on in comparison.sets:
        of = [d for d in comparison.differences if d.on == on]
        shown = [d.text for d in of if d.outcome != "not shown"]
        what = f"{of[0].n:,} {on.words(of[0].n)}" if of else ""
        if shown:
            lines += shown
        elif of:
            lines.append(
                f"On {what}, no published adapter is shown to pass more or fewer than base or another."
            )
    return [*lines, ONE_ADAPTER] if any(d.outcome != "not shown" for d in comparison.differences) else lines
