"""Own data the newcomer's way, as one: `make own` twice with checks, `dvc repro`, and the report of it."""

from __future__ import annotations

import json

import pytest

from tests.tools.test_own import calls, tickets
from tests.workspace import make_workspace


@pytest.mark.faults
def test_own_files_with_checks_become_a_report_in_one_go(tmp_path, small_model):
    project = make_workspace(tmp_path, small_model)
    project.set(
        variants={"C": project.params()["variants"]["C"]},
        export__variants=["C"],
        profiles__tiny__model__chat_template="chatml-tools",
        profiles__tiny__data={"max_length": 1000, "rows_scale": 1.0},
        profiles__tiny__eval__task_prompts=0,
        profiles__tiny__eval__code_rows=0,
        profiles__tiny__eval__max_new_tokens=8,
    )
    project.run("dvc", "repro", "fetch-model")
    (tmp_path / "tickets.csv").write_text(tickets(60))
    (tmp_path / "calls.jsonl").write_text(calls(60))
    columns = ("--column", "user=text", "--column", "assistant=label")
    done = project.tool("own", "tickets.csv", *columns, "--check")
    assert "Answers are checked (choice)" in done.stdout
    done = project.tool("own", "calls.jsonl", "--variant", "E", "--check")
    assert "Answers are checked (tool_call)" in done.stdout

    project.run("dvc", "repro")

    summary = json.loads((tmp_path / "metrics/summary.json").read_text())
    assert {"untested"} & summary["E"].keys() == set() and summary["E"]["checks"].keys() == {
        "tickets",
        "calls",
    }
    for model in ("base", "C", "D", "E"):
        lines = [
            json.loads(line)
            for line in (tmp_path / f"metrics/eval/{model}/tasks.jsonl").read_text().split("\n")
            if line
        ]
        asked = {
            source: [line for line in lines if line["source"] == source] for source in ("tickets", "calls")
        }
        assert all(asked.values())
        assert {line["expected"] for line in asked["tickets"]} <= {"billing", "refund", "shipping"}
        assert all(line["checks"].keys() == {"calls", "name", "arguments"} for line in asked["calls"])
        assert summary[model]["checks"]["tickets"]["n"] == len(asked["tickets"])
    report = (tmp_path / "plots/report.html").read_text()
    for words in ("tickets", "calls", "macro-F1", "compared with base"):
        assert words in report, words
