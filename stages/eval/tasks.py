"""Tasks whose answers a program checks, and the pass rate of each kind.

Two kinds: `instructions`, the project's own prompts (tasks.yaml), and `code`, "improve this Python code" rows of the
test set, checked with ruff (lint.py). A task counts as passed when all its checks hold, or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ruamel.yaml import YAML

from abctune.core.records import CheckCount, PassRateRecord, TaskRecord
from abctune.llm.conversation import text_hash
from abctune.llm.inference import Answer
from stages.eval.checks import CHECKS, word_list

TASKS_FILE = Path(__file__).with_name("tasks.yaml")

Kind = Literal["instructions", "code"]


@dataclass(frozen=True)
class Task:
    """A prompt and the checks that its answer must pass."""

    id: str
    kind: Kind
    prompt: str
    check: Callable[[str], dict[str, bool]]  # the answer -> what held and what did not


def written_tasks(limit: int, path: Path = TASKS_FILE) -> list[Task]:
    """The first `limit` of the project's own tasks, in an order that a hash of the ids fixes.

    So 12 are part of 40, which are part of all, and neither the seed nor the file's order chooses.
    """
    entries = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    entries.sort(key=lambda entry: text_hash(entry["id"]))
    return [
        Task(entry["id"], "instructions", entry["prompt"], partial(run_checks, entry))
        for entry in entries[:limit]
    ]


def run_checks(entry: dict[str, Any], answer: str) -> dict[str, bool]:
    """Each of the entry's checks, and that the answer does not just repeat the prompt, as small models do."""
    held = {name: CHECKS[name](answer, wanted) for name, wanted in entry["checks"].items()}
    return held | {"own_words": word_list(answer) != word_list(entry["prompt"])}


def results(tasks: Sequence[Task], answers: Sequence[Answer]) -> list[TaskRecord]:
    """One record per task: the answer, each check's outcome, and whether all held."""
    return [_result(task, answer) for task, answer in zip(tasks, answers, strict=True)]


def _result(task: Task, answer: Answer) -> TaskRecord:
    checks = task.check(answer.after_thoughts)
    return TaskRecord(
        id=task.id,
        kind=task.kind,
        prompt=task.prompt,
        answer=answer.text,
        n_tokens=len(answer.token_ids),
        stopped=answer.stopped,
        checks=checks,
        passed=all(checks.values()),
    )


def pass_rates(tasks: Sequence[TaskRecord], by: Literal["kind", "source"]) -> dict[str, PassRateRecord]:
    """How many were asked, how many passed, the share, and how often each check held.

    Args:
        tasks: the lines of tasks.jsonl.
        by: `kind` for the project's own tasks, by kind; `source` for sources' own checks, by source.
    """
    groups: dict[str, list[TaskRecord]] = {}
    for task in tasks:
        if (task.source is None) == (by == "kind"):
            groups.setdefault(task.source or task.kind, []).append(task)
    rates = {}
    for name, of in groups.items():
        passed = sum(task.passed for task in of)
        checks: dict[str, list[bool]] = {}
        for task in of:
            for check, held in task.checks.items():
                checks.setdefault(check, []).append(held)
        rates[name] = PassRateRecord(
            n=len(of),
            passed=passed,
            share=round(passed / len(of), 4),
            checks={check: CheckCount(n=len(held), passed=sum(held)) for check, held in checks.items()},
        )
    return rates
