"""The comparison on tasks: intervals as published, and no winner from a handful of answers."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from abctune.core.errors import UserError
from abctune.core.params import load_params
from abctune.core.shares import wilson
from abctune.study.inputs import read_study
from abctune.study.statistics import mcnemar, paired_shares
from abctune.study.tasks import compare_tasks
from tests.plot.fake_run import collect

HALF = [True, False] * 30


@pytest.mark.parametrize(
    ("counts", "low", "high"),  # method 10 on the examples of Newcombe (1998)
    [((36, 12, 2, 0), 0.0569, 0.3404), ((36, 14, 0, 0), 0.1528, 0.4167), ((53, 0, 1, 0), -0.0977, 0.0496)],
)
def test_a_paired_interval_is_newcombes(counts, low, high):
    assert paired_shares(*counts)[1:] == pytest.approx((low, high), abs=5e-5)


def test_models_that_agree_on_every_task_are_not_called_equal():
    """Resampling would say [0, 0]: fifty agreeing tasks leave room for a difference."""
    value, low, high = paired_shares(43, 0, 0, 7)
    assert value == 0 and low < -0.05 and high > 0.05
    assert mcnemar(0, 0) == 1


def test_a_share_of_all_or_none_has_an_interval_inside_0_and_1():
    assert wilson(0, 10) == pytest.approx((0, 0.278), abs=1e-3)
    assert wilson(10, 10) == pytest.approx((0.722, 1), abs=1e-3)


@pytest.mark.parametrize("n", [40, 120])
def test_paired_intervals_hold_the_truth_and_the_test_keeps_its_level(n):
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(n, [0.3, 0.15, 0.15, 0.4], 1000).tolist()
    held = [low <= 0 <= high for _, low, high in (paired_shares(*counts) for counts in drawn)]
    rejected = [mcnemar(counts[1], counts[2]) < 0.05 for counts in drawn]
    assert 0.93 <= np.mean(held) <= 0.98
    assert np.mean(rejected) <= 0.06


def test_a_model_that_passes_many_more_tasks_is_called_better(plotted, undrawn):
    better = [True] * 30 + HALF[30:]
    summary = plotted(passed={"base": HALF, "A": HALF, "B": HALF, "C": better})
    assert summary["C"]["tasks"] == {"pass": 0.75} and summary["base"]["tasks"] == {"pass": 0.5}
    found = compare_tasks(read_study(load_params()))
    assert found.difference("C", "base", "instructions").short.startswith("one run: better by 0.25 [0.1")
    assert found.difference("B", "base", "instructions").short.startswith("one run: not shown")
    text = Path("plots/report.md").read_text()
    assert re.search(
        r"This adapter of C passes more instructions than this adapter of B: the share differs by 0\.25 \[0\.1\d, 0\.3\d\], n = 60",
        text,
    )
    assert "15 passed by C only, 0 by B only" in text


def test_a_result_of_one_adapter_is_never_stated_about_the_variant(plotted, undrawn, capsys):
    """The published adapter alone answers the tasks, however many replicates the losses are averaged over."""
    plotted(passed={"base": [False] * 20, "A": [False] * 20, "B": [True] * 20, "C": [False] * 20})
    wanted = "This adapter of B passes more instructions than base: the share differs by 1.00"
    against = "This adapter of C passes fewer instructions than this adapter of B"
    nothing = "nothing is said about the recipes"
    for text in (
        capsys.readouterr().out,
        *(Path("plots", f).read_text() for f in ("report.md", "cards/B.md")),
    ):
        assert wanted in text and against in text and nothing in text
        assert not re.search(r"(?<!of )\b[ABC] passes|than [ABC]\b:", text)
    page = Path("plots/report.html").read_text()
    assert wanted in page and "In tasks, one adapter of each variant took part, the published one" in page


def test_a_difference_on_few_tasks_is_not_shown(fake_run):
    fake_run(passed={"base": HALF[:8], "A": HALF[:8], "B": HALF[:8], "C": [True] * 6 + HALF[:2]})
    found = compare_tasks(read_study(load_params()))
    assert found.difference("C", "base", "instructions").value > 0.3
    assert {d.outcome for d in found.differences} == {"not shown"}


def test_models_that_were_asked_different_tasks_stop_the_stage(fake_run):
    fake_run()
    path = Path("metrics/eval/A/tasks.jsonl")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    collect()
    with pytest.raises(UserError, match="base and A were asked different tasks"):
        read_study(load_params())


def test_a_run_without_tasks_has_a_report_without_that_section(plotted, undrawn):
    summary = plotted(passed={model: [] for model in ("base", "A", "B", "C")})
    assert "tasks" not in summary["C"]
    assert "Tasks that a program checks" not in Path("plots/report.md").read_text()
    assert 'id="tasks"' not in Path("plots/report.html").read_text()
