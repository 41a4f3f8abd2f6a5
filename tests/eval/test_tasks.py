"""Checkable tasks: every one can be passed, none by a stock answer, and a subset is part of every larger one."""

from __future__ import annotations

import json
import re

import pytest
from ruamel.yaml import YAML

from abctune.core.records import TaskRecord
from stages.eval import checks
from stages.eval.lint import check_improved, code_tasks
from stages.eval.tasks import TASKS_FILE, pass_rates, run_checks, written_tasks

ENTRIES = YAML(typ="safe", pure=True).load(TASKS_FILE.read_text(encoding="utf-8"))
STOCK = (
    "",
    "I'm not sure.",
    "I'm sorry, but I can't help with that.",
    "I don't know. What do you think?",
    "Sure! Here is what you asked for:",
    "As an assistant I can help with many things, such as writing, analysis and code. What would you like to do?",
)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["id"])
def test_a_task_can_be_passed_but_not_by_a_stock_answer(entry):
    assert all(run_checks(entry, entry["example"]).values())
    for answer in (*STOCK, entry["prompt"]):  # nor by repeating the question
        assert not all(run_checks(entry, answer).values()), answer


def test_there_are_at_least_100_tasks_of_all_kinds():
    assert len(ENTRIES) >= 100
    assert (
        len({entry["id"] for entry in ENTRIES}) == len({entry["prompt"] for entry in ENTRIES}) == len(ENTRIES)
    )
    used = {name for entry in ENTRIES for name in entry["checks"]}
    assert used == set(checks.CHECKS), "a check that no task uses, or the other way round"


def test_fewer_tasks_are_part_of_more(tmp_path):
    few, more, every = ([task.id for task in written_tasks(n)] for n in (8, 40, 10_000))
    assert few == more[:8] and more == every[:40] and len(every) == len(ENTRIES)
    shuffled = tmp_path / "tasks.yaml"
    with shuffled.open("w") as file:
        YAML().dump(ENTRIES[::-1], file)
    assert [task.id for task in written_tasks(8, shuffled)] == few
    assert written_tasks(0) == []


@pytest.mark.parametrize(
    ("check", "answer", "wanted", "held"),
    [
        ("sentences", "One. Two! Three", 3, True),
        ("sentences", 'He said "Stop!" Then he left.', 2, True),
        ("sentences", "3.14 is near pi.", 1, True),
        ("words", "It's a well-known fact", 4, True),
        ("bullets", "- a\n* b\n-c", 2, True),
        ("numbered", "1. a\n3. b", 2, False),
        ("mentions", "Birds sing", ["bird"], True),
        ("mentions", "A jailbird", ["bird"], False),
        ("avoids", "the theory", ["he"], True),
        ("times", "Honey, honey! honeycomb", {"honey": 2}, True),
        ("ordered", "lunch then breakfast", ["breakfast", "lunch"], False),
        ("case", "123", "upper", False),
        ("without", "", ",", False),
        ("one_of", "Yes.", ["yes"], True),
        ("one_of", "Yes, it is.", ["yes"], False),
        ("json", "```json\n[1, 2]\n```", {"length": 2, "values": "number"}, True),
        ("json", "Here it is: [1, 2]", {"length": 2}, False),
        ("json", '{"a": 1, "b": 2}', {"keys": ["a"]}, False),
        ("json", '{"a": "x"}', {"keys": ["a"], "values": "boolean"}, False),
        ("json", "[" * 100_000, {"length": 1}, False),
        ("table", "| a | b |\n|---|---|\n| 1 | 2 |", {"columns": 2, "rows": 1}, True),
        ("table", "| a | b |\n| 1 | 2 |", {"columns": 2, "rows": 1}, False),
        ("python", "```python\nprint(1)\n```", {"calls": "print"}, True),
        ("python", "```python\nprint(1\n```", {}, False),
        ("python", "```\nprint(1)\n```", {}, False),
        ("python", "```python\n# nothing\n```", {}, False),
        ("python", "```python\ndef f(): ...\n```", {"defines": "g"}, False),
        ("python", "```python\n" + "(" * 5000 + "\n```", {}, False),
        ("python", "```python\nx = 1\x00\n```", {}, False),
    ],
)
def test_a_check_says_what_it_means(check, answer, wanted, held):
    assert checks.CHECKS[check](answer, wanted) is held


def test_a_task_is_passed_only_when_all_its_checks_hold():
    asked = TaskRecord(
        id="1", kind="code", prompt="", answer="", n_tokens=1, stopped=True, checks={}, passed=True
    )
    rows = [
        asked.model_copy(update=changed)
        for changed in (
            {"kind": "instructions", "checks": {"words": True, "ends": False}, "passed": False},
            {"kind": "instructions", "checks": {"words": True}},
            {"checks": {"parses": True}},
            # A source of the name of a kind is not mixed up with it.
            {"kind": "exact", "source": "code", "checks": {"exact": False}, "passed": False},
        )
    ]
    rates = pass_rates(rows, "kind")
    assert rates["instructions"].model_dump() == {
        "n": 2,
        "passed": 1,
        "share": 0.5,
        "checks": {"words": {"n": 2, "passed": 2}, "ends": {"n": 1, "passed": 0}},
    }
    assert rates["code"].share == 1
    assert {source: rate.share for source, rate in pass_rates(rows, "source").items()} == {"code": 0}
    assert pass_rates([], "kind") == {}


def row(rule: str, faulty: str, reference: str, **changes) -> dict:
    question = f"Improve this Python code:\n```python\n{faulty}\n```"
    answer = f"```python\n{reference}\n```\n\nBecause."
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"id": f"id-{rule}", "group": rule, "messages": messages} | changes


NONE_COMPARISON = row("E711", "if result == None:\n    stop(result)", "if result is None:\n    stop(result)")


def test_improved_code_must_parse_be_about_the_same_and_satisfy_the_rule():
    (task,) = code_tasks([NONE_COMPARISON], 5)
    assert task.prompt.startswith("Improve this Python code") and task.kind == "code"
    good = {"parses": True, "same_names": True, "rule_satisfied": True}
    assert task.check("Here:\n```python\nif result is None:\n    stop(result)\n```") == good
    assert task.check("if not result:\n    stop(result)") == good  # a fence is not asked for
    assert not task.check("```python\nif result == None:\n    stop(result)\n```")["rule_satisfied"]
    assert not task.check("```python\nif result == None:  # noqa: E711\n    stop(result)\n```")[
        "rule_satisfied"
    ]
    assert not task.check("```python\nprint('hello')\n```")["same_names"]
    assert not any(task.check("```python\nif result is None\n```").values())
    assert not any(task.check("I'm not sure.").values())
    assert not any(task.check("").values())


@pytest.mark.parametrize(
    "unfit",
    [
        row(
            "E711", "if result is None:\n    stop(result)", "if result is None:\n    stop(result)"
        ),  # no fault
        row(
            "E711", "if result == None:\n    stop(result)", "if result == None:\n    stop(result)"
        ),  # none mended
        row(
            "E711", "if result == None:\n    stop(result)", "if result is None:\n    stop("
        ),  # cut at max_length
        row(
            "ZZZ999", "if result == None:\n    stop(result)", "if result is None:\n    stop(result)"
        ),  # no such rule
        NONE_COMPARISON | {"group": "9f86d081884c7d65"},  # another source's row
        NONE_COMPARISON
        | {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]},
    ],
)
def test_rows_that_could_not_tell_good_from_bad_are_left_out(unfit):
    assert code_tasks([unfit], 5) == []
    assert [task.id for task in code_tasks([unfit, NONE_COMPARISON | {"id": "fit"}], 5)] == ["fit"]


def test_at_most_as_many_code_rows_as_asked_are_used():
    rows = [NONE_COMPARISON | {"id": str(i)} for i in range(4)]
    assert len(code_tasks(rows, 3)) == 3
    assert code_tasks(rows, 0) == []


def test_model_written_code_is_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "open('evidence', 'w').write('ran')\nif result is None:\n    stop(result)"
    assert check_improved(f"```python\n{code}\n```", "E711", frozenset({"result"}))["parses"]
    assert not list(tmp_path.iterdir())


def test_eval_writes_what_was_asked_and_what_held(ready_to_train):
    """The whole stage on a very small model, whose answers are noise: it must pass nothing, and say so."""
    ready_to_train.set(profiles__tiny__eval__task_prompts=5, profiles__tiny__eval__max_new_tokens=8)
    done = ready_to_train.stage("eval", "base")
    folder = ready_to_train.root / "metrics/eval/base"
    rows = [json.loads(line) for line in (folder / "tasks.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [task.id for task in written_tasks(5)]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics["tasks"]) == {"instructions"}  # the test's data have no code rows
    assert metrics["tasks"]["instructions"]["passed"] == sum(row["passed"] for row in rows)
    assert re.search(r"base instructions: \d of 5 tasks passed", done.stdout)
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert metrics["generation"]["n_prompts"] == len(samples) == 10
