"""Checks on a source's own rows, from the answers to the report; and sources that no test row is of."""

import json
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages.plot.__main__ import main
from tests.plot.fake_run import RECIPES, collect

pytestmark = pytest.mark.usefixtures("undrawn")

LABELS = ["spam", "ham"]


def add_answers(root: Path, wrong: dict[str, set[int]], n: int = 40) -> None:
    """Answers of every model to `n` rows of chat; those with a number in `wrong` are so."""
    yaml = YAML()
    params = yaml.load((root / "params.yaml").read_text())
    params["evaluation"]["checks"] = {"chat": {"kind": "choice", "labels": LABELS}}
    with (root / "params.yaml").open("w") as file:
        yaml.dump(params, file)
    for model in ("base", *RECIPES):
        with (root / "metrics/eval" / model / "tasks.jsonl").open("a") as file:
            for i in range(n):
                right, held = LABELS[i % 4 == 0], i not in wrong.get(model, set())
                given = right if held else LABELS[1 - LABELS.index(right)]
                line = {
                    "id": f"row-{i}",
                    "kind": "choice",
                    "source": "chat",
                    "prompt": f"<b>Is it spam? {i}</b>",
                    "answer": f"<script>alert(1)</script> {given}",
                    "n_tokens": 4,
                    "stopped": True,
                    "checks": {"label": held, "short_enough": True} if i else {"label": held},
                    "passed": held,
                    "expected": right,
                    "predicted": given,
                }
                file.write(json.dumps(line) + "\n")
    collect(root)


@pytest.fixture
def checked(fake_run):
    root = fake_run()
    add_answers(root, {"base": set(range(20)), "A": set(range(20)), "B": {0, 39}, "C": set()})
    main()
    return json.loads(Path("metrics/summary.json").read_text())


def test_summary_counts_what_was_won_and_lost(checked):
    b = checked["B"]["checks"]["chat"]
    assert (b["n"], b["passed"], b["won"], b["lost"]) == (40, 38, 19, 1)
    assert b["vs_base"].startswith("one run: better by")
    assert "won" not in checked["base"]["checks"]["chat"]
    assert checked["C"]["checks"]["chat"]["macro_f1"] == 1.0
    # Of 10 ham rows base gets 5, of 30 spam rows 15: F1 = 10 / (10 + 20) and 30 / (30 + 20).
    assert checked["base"]["checks"]["chat"]["macro_f1"] == pytest.approx((10 / 30 + 30 / 50) / 2, abs=1e-4)


def test_the_report_lists_the_rows_won_and_lost_and_no_answer_is_markup(checked):
    page = Path("plots/report/report.html")
    text = (page if page.exists() else next(Path("plots").rglob("report.html"))).read_text()
    assert "This adapter of B compared with base: 19 rows won, 1 lost" in text
    assert "This adapter of B passes more rows of the check on chat than base" in text
    assert "<script>" not in text and "&lt;script&gt;alert(1)" in text
    assert '<td class="wrap">ham</td><td class="n">5 of 10 <small>given 20</small></td>' in text
    # Of 40 rows base gets 20 labels; what one answer was not asked for counts as not held.
    assert re.search(r"base</span></td><td class=\"n\">20</td><td class=\"n\">39</td>", text)
    assert "base: label 20, short enough 39" in Path("plots/report.md").read_text()


def test_the_card_counts_each_label(checked):
    card = Path("plots/cards/B.md").read_text()
    assert "| model | label | short enough |" in card and "| base | 20 | 39 |" in card
    assert "Labels of the check on chat" in card
    assert "| ham | 5 of 10 | 20 | 9 of 10 | 10 |" in card  # base, then B
    assert "| macro-F1 | 0.467 | | " in card
    assert "This adapter of B passes more rows of the check on chat than base" in card


def test_without_checks_nothing_is_said_of_them(plotted):
    summary = plotted()
    assert "checks" not in summary["B"] and "untested" not in summary["B"]
    assert "Check on" not in next(Path("plots").rglob("report.html")).read_text()


def test_a_source_that_no_test_row_is_of_is_warned_of_everywhere(fake_run, capsys):
    root = fake_run()
    path = root / "metrics/collected/A/mixed.json"
    mixed = json.loads(path.read_text())
    mixed["sources"]["own"] = mixed["sources"]["chat"]
    path.write_text(json.dumps(mixed))
    main()
    wanted = "A trains on own, of which the test set has no row"
    summary = json.loads(Path("metrics/summary.json").read_text())
    assert summary["A"]["untested"].startswith(wanted)
    assert "Add own to variants.C.mix" in summary["A"]["untested"]
    assert "untested" not in summary["B"]
    assert wanted in capsys.readouterr().out
    assert (
        next(Path("plots").rglob("report.html")).read_text().count(wanted) == 2
    )  # at the top, and among the warnings
