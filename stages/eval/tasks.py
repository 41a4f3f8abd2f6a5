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

from abctune.core.records import CheckCount, PassRateRecord
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


def results(tasks: Sequence[Task], answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """One row per task: the answer, each check's outcome, and whether all held."""
    return [_row(task, answer) for task, answer in zip(tasks, answers, strict=True)]


def _row(task: Task, answer: Answer) -> dict[str, Any]:
    checks = task.check(answer.text)
    return {
        "id": task.id,
        "kind": task.kind,
        "prompt": task.prompt,
        "answer": answer.text,
        "n_tokens": len(answer.token_ids),
        "stopped": answer.stopped,
        "checks": checks,
        "passed": all(checks.values()),
    }


def pass_rates(rows: Sequence[dict[str, Any]], by: Literal["kind", "source"]) -> dict[str, PassRateRecord]:
    """How many were asked, how many passed, the share, and how often each check held.

    Args:
        rows: of tasks.jsonl.
        by: `kind` for the project's own tasks, by kind; `source` for sources' own checks, by source.
    """
    rates = {}
    rows = [row for row in rows if (row.get("source") is None) == (by == "kind")]
    for name in dict.fromkeys(row[by] for row in rows):
        of = [row for row in rows if row[by] == name]
        passed = sum(row["passed"] for row in of)
        checks: dict[str, list[bool]] = {}
        for row in of:
            for check, held in row["checks"].items():
                checks.setdefault(check, []).append(held)
        rates[name] = PassRateRecord(
            n=len(of),
            passed=passed,
            share=round(passed / len(of), 4),
            checks={check: CheckCount(n=len(held), passed=sum(held)) for check, held in checks.items()},
        )
    return rates
