"""Held-out "improve this Python code" rows as tasks: does the model's code parse, and is the lint rule satisfied?

A row is used only if ruff finds its rule in the faulty code and not in the reference answer, and if the two have
names in common: else the check would say nothing. ruff reads the code, nothing runs it.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from functools import partial
from typing import Any

from abctune.core.errors import UserError
from abctune.llm.conversation import text_hash
from stages.eval.checks import fenced, parsed
from stages.eval.tasks import Task

REQUEST = re.compile(r"Improve this Python code:\n```python\n(.*)\n```", re.DOTALL)
RULE_CODE = re.compile(r"[A-Z]{1,5}\d{1,4}")
# fmt: off
RUFF = (
    sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--preview", "--ignore-noqa", "--quiet",
    "--output-format", "json", "--stdin-filename", "example.py",
)
# fmt: on


def code_tasks(rows: Iterable[dict[str, Any]], limit: int) -> list[Task]:
    """Up to `limit` tasks from test rows (`id`, `group`, `messages`), in a fixed hash order; none where no row is fit.

    Args:
        rows: test rows; those of the ruff_rules recipe have the rule's code as their group.
    """
    tasks: list[Task] = []
    for row in sorted(rows, key=lambda row: text_hash(row["group"])):
        if len(tasks) == limit:
            break
        request = REQUEST.fullmatch(row["messages"][0]["content"])
        if not request or not RULE_CODE.fullmatch(row["group"]) or len(row["messages"]) != 2:
            continue
        faulty, rule, reference = request[1], row["group"], code_of(row["messages"][1]["content"])
        kept = names(faulty) & names(reference)
        if (
            kept
            and triggers(faulty, rule)
            and parsed(reference) is not None
            and not triggers(reference, rule)
        ):
            check = partial(check_improved, rule=rule, kept=kept)
            tasks.append(Task(row["id"], "code", row["messages"][0]["content"], check))
    return tasks


def code_of(answer: str) -> str:
    """The answer's first code block, or all of it where there is none."""
    blocks = fenced(answer)
    return blocks[0][1] if blocks else answer


def check_improved(answer: str, rule: str, kept: frozenset[str]) -> dict[str, bool]:
    """Whether the answer's code parses, is still about the same things, and no longer triggers the rule.

    Args:
        kept: names in both the faulty code and the reference answer. At least half of them must be there:
            code of any other kind would satisfy the rule by not being about it.
    """
    code = code_of(answer)
    tree = parsed(code)
    if tree is None or not tree.body:
        return {"parses": False, "same_names": False, "rule_satisfied": False}
    return {
        "parses": True,
        "same_names": 2 * len(kept & names(code)) >= len(kept),
        "rule_satisfied": not triggers(code, rule),
    }


def names(code: str) -> frozenset[str]:
    """Everything in the code that has a name: variables, attributes, functions, classes, parameters, modules."""
    tree = parsed(code)
    if tree is None:
        return frozenset()
    found: set[str] = set()
    for node in ast.walk(tree):
        for field in ("id", "attr", "name", "arg", "module"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                found.add(value)
    return frozenset(found)


def triggers(code: str, rule: str) -> bool:
    """Whether ruff reports this rule, suppression comments set aside. Code it cannot parse triggers none.

    Raises:
        UserError: ruff is not installed.
    """
    command = [*RUFF, "--select", rule, "-"]
    done = subprocess.run(command, input=code, capture_output=True, text=True, encoding="utf-8")
    if done.returncode == 1 and done.stdout.startswith("["):
        return any(problem["code"] == rule for problem in json.loads(done.stdout))
    if "No module named" in done.stderr:
        raise UserError(
            "ruff is not installed, which checks the code tasks; `pip install ruff`, or set profiles.*.eval.code_rows to 0"
        )
    return False  # nothing found, or (status 2) a rule that this ruff does not know
