"""The stage as a whole, on made-up runs: the right words for what was planted, and no unfair comparison."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from abctune.core.errors import UserError
from abctune.core.params import load_params
from abctune.study.comparison import compare
from abctune.study.inputs import read_study
from abctune.study.verdicts import verdicts_of
from stages.plot.__main__ import main
from tests.plot.fake_run import RECIPES, ROOT, add_accuracy, collect, effect

CONVERSATIONS = "metrics/eval/{}/conversations.parquet"


def outcomes() -> dict[tuple[str, str, str], str]:
    """(model, reference, set) -> outcome of the run in the current folder."""
    found = verdicts_of(compare(read_study(load_params())))
    return {(v.difference.model, v.difference.reference, v.difference.on.name): v.outcome for v in found}


def test_a_planted_effect_is_called_better_where_it_is_and_nowhere_else(plotted, undrawn):
    summary = plotted({"C": effect(instruct=-0.05)}, n={"chat": 200, "instruct": 200})
    text = Path("plots/report.md").read_text()
    assert re.search(r"C is better than base on instruct by 0\.0[456]\d* nats \[0\.0", text)
    assert re.search(r"C is better than B on instruct by 0\.0[3-7]\d* nats \[0\.0", text)
    assert not re.search(r"C is (better|worse) than base on chat", text)
    assert not re.search(r"B is (better|worse) than base on instruct", text)
    assert summary["C"]["vs_base"].startswith("better by")
    gain = summary["base"]["loss"]["overall"] - summary["C"]["loss"]["overall"]
    assert float(summary["C"]["vs_base"].split()[2]) == pytest.approx(gain, abs=5e-3)


def test_the_first_columns_of_dvc_exp_show_are_every_models_loss_and_the_verdicts(plotted, undrawn):
    summary = plotted({"C": effect(instruct=-0.05)})
    assert list(summary)[:2] == ["loss", "verdict"]
    assert summary["loss"] == {name: summary[name]["loss"]["overall"] for name in ("base", *RECIPES)}


def test_a_planted_harm_is_called_worse(fake_run):
    fake_run({"A": effect(chat=0.08)}, n={"chat": 200, "instruct": 200})
    assert outcomes()["A", "base", "chat"] == "worse"


def test_where_nothing_is_planted_nothing_is_shown(plotted, undrawn):
    summary = plotted()
    words = [*summary["verdict"].values(), *(summary[name]["vs_base"] for name in RECIPES)]
    assert len(words) == 6 and not any(re.match("better|worse", short) for short in words)
    page = Path("plots/report.md").read_text()
    assert " is better than " not in page and " is worse than " not in page


def test_one_replicate_never_yields_a_verdict_on_a_recipe(plotted, undrawn, capsys):
    summary = plotted({"C": effect(chat=-0.5, instruct=-0.5)}, replicates=1)
    text = Path("plots/report.md").read_text()
    assert "No headline on A, B and C: trained once" in capsys.readouterr().out
    assert not re.search(r"[^f] C is (better|worse|equivalent|not worse)", text)
    assert "This adapter of C is better than base overall by 0.5" in text
    assert text.count("One run: nothing is said about the recipes.") >= 18
    assert summary["C"]["vs_base"].startswith("one run: better by")


def test_general_text_is_a_set_of_its_own_and_says_what_was_forgotten(plotted, undrawn):
    summary = plotted({"C": effect(general=0.3)}, general=60)
    assert re.match(r"worse by 0\.(29|3)", summary["C"]["forgetting"])
    text = Path("plots/report.md").read_text()
    assert re.search(r"C forgets: general text worse by 0\.(29|3)\d* \[0\.2", text)
    assert re.search(r"C forgets: general text worse by 0\.(29|3)", Path("plots/cards/C.md").read_text())
    # 130 rows of the sources: general text is no part of "overall".
    assert "overall (n = 130)" in text and not summary["C"]["vs_base"].startswith("worse")


def test_each_base_format_is_compared_with_how_the_adapter_was_judged(plotted, undrawn):
    summary = plotted(served={"16bit": 0.0, "q4_k_m.gguf": 0.05})
    assert summary["C"]["served"]["16bit"].startswith("equivalent: ")
    assert summary["C"]["served"]["q4_k_m.gguf"].startswith("worse by 0.0")
    text = Path("plots/report.md").read_text()
    assert re.search(
        r"^- This adapter of C as served, .*: 16bit equivalent: .*; q4_k_m.gguf worse by 0\.0", text, re.M
    )
    assert re.search(r"\| C \| 16bit \| .* \| equivalent: ", text)
    assert re.search(r"\| C \| q4_k_m.gguf \| .* \| worse by 0\.0(49|5)", text)


def test_another_metric_is_compared_as_the_loss_is(fake_run, undrawn):
    fake_run()
    add_accuracy()
    main()
    text = Path("plots/report.md").read_text()
    assert re.search(r"C is better than base overall in accuracy by 0\.2\d* share", text)
    # 18 differences of each metric, and each metric has a correction of its own.
    for page in (text, Path("plots/report.html").read_text()):
        assert "for all 18 comparisons of a metric" in page and "comparisons on this page" not in page
        assert "Better means a lower test loss, in nats per supervised token; in accuracy, higher." in page
        assert "The verdicts by loss and accuracy are on recipes" in page
        assert "Equivalent and not worse are about the loss, by the margin of 0.02 nats" in page
    # A and B differ by next to nothing, in a share for which nobody has set a margin.
    found = compare(read_study(load_params())).differences
    assert {d.outcome for d in found if d.metric.name == "accuracy"} == {"better", "undecided"}


def test_models_with_equal_results_are_called_the_same(fake_run):
    fake_run()
    shutil.copytree("metrics/eval/B", "metrics/eval/C", dirs_exist_ok=True)
    collect()
    assert outcomes()["C", "B", "overall"] == "equivalent"


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("id", "another row", "base and B were scored on different rows"),
        ("n_supervised", 999, "base and B have different numbers of supervised tokens for 1 of the 130 rows"),
        ("source", "elsewhere", "base and B have different sources"),
        ("nll", float("nan"), "without a finite nll"),
    ],
)
def test_a_model_scored_on_other_rows_stops_the_stage(fake_run, column, value, message):
    fake_run()
    rows = pd.read_parquet(CONVERSATIONS.format("B"))
    rows.loc[rows["id"] == rows["id"][3], column] = value
    rows.to_parquet(CONVERSATIONS.format("B"))
    collect(Path(), "B")
    with pytest.raises(UserError, match=message):
        read_study(load_params())


def test_a_missing_row_stops_the_stage(fake_run):
    fake_run()
    rows = pd.read_parquet(CONVERSATIONS.format("C"))
    rows[rows["id"] != rows["id"][0]].to_parquet(CONVERSATIONS.format("C"))
    collect(Path(), "C")
    with pytest.raises(UserError, match="base and C were scored on different rows"):
        read_study(load_params())


def test_rows_that_share_a_group_count_as_one(fake_run):
    """Every third instruct row shares its group; making all of them pairs must widen the interval."""
    fake_run({"C": effect(instruct=-0.3)})
    found = compare(read_study(load_params()))
    before = found.difference("C", "base", "instruct")
    assert (before.on.n, before.on.n_groups) == (70, 47)
    for model in ("base", *RECIPES):
        rows = pd.read_parquet(CONVERSATIONS.format(model))
        extra = rows[rows["source"] == "instruct"]
        doubled = pd.concat([rows, extra.assign(id="again " + extra["id"])])  # copies: no new evidence
        doubled.to_parquet(CONVERSATIONS.format(model))
    collect()
    after = compare(read_study(load_params())).difference("C", "base", "instruct")
    assert (after.on.n, after.on.n_groups) == (140, 47)
    # Not equal to the last digit: the study's other variances, which inform this one, saw the copies in "overall".
    assert after.high - after.low == pytest.approx(before.high - before.low, rel=0.005)


def test_other_prompts_stop_the_stage(fake_run):
    fake_run()
    path = Path("metrics/eval/A/samples.jsonl")
    path.write_text(path.read_text().replace("Who are you?", "Who am I?"))
    collect(Path(), "A")
    with pytest.raises(UserError, match="base and A answered different prompts"):
        read_study(load_params())


@pytest.mark.parametrize("column", ["id", "group"])
def test_a_test_row_among_the_training_rows_stops_the_stage(fake_run, column, capsys):
    fake_run()
    leaked = pd.read_parquet(CONVERSATIONS.format("base")).loc[5, column]
    train = pd.DataFrame({"id": ["t1", "t2"], "group": ["g1", "g2"]})
    train.loc[1, column] = leaked
    train.to_parquet("data/split/B/train.parquet")
    with pytest.raises(SystemExit, match=r"^1$"):
        collect(Path(), "B")
    said = capsys.readouterr().err
    assert re.search(r"unfair comparison: \d of 130 .* among the rows B was trained on", said)


@pytest.mark.parametrize(
    ("path", "made_by"),
    [
        ("metrics/eval/base/conversations.parquet", "eval-base"),
        ("metrics/collected/B/eval/metrics.json", "collect@B"),
        ("metrics/collected/B/training.json", "collect@B"),
        ("metrics/collected/B/train/2/plots/metrics/train/loss.tsv", "collect@B"),
    ],
)
def test_a_missing_or_damaged_input_names_the_stage_that_makes_it(fake_run, path, made_by):
    fake_run()
    Path(path).write_bytes(b"\x00not it")
    with pytest.raises(UserError, match=f"{path}.* `dvc repro --force --single-item {made_by}`"):
        read_study(load_params())
    Path(path).unlink()
    with pytest.raises(UserError, match=f"{path} not found; `dvc repro {made_by}`"):
        read_study(load_params())


@pytest.mark.parametrize(
    ("path", "made_by"),
    [
        ("metrics/eval/B/metrics.json", "eval@B"),
        ("metrics/train/B/training.json", "train@B"),
        ("data/formatted/B/summary.json", "format@B"),
        ("data/mixed/B.json", "mix@B"),
        ("data/split/B.json", "split@B"),
    ],
)
def test_what_cannot_be_collected_names_the_stage_that_makes_it(fake_run, capsys, path, made_by):
    fake_run()
    Path(path).write_text('{"version": 1}')
    with pytest.raises(SystemExit):
        collect(Path(), "B")
    assert re.search(
        f"{path} is not what this version writes .*`dvc repro --force --single-item {made_by}`",
        capsys.readouterr().err,
    )
    Path(path).unlink()
    with pytest.raises(SystemExit):
        collect(Path(), "B")
    assert f"{path} not found; `dvc repro {made_by}`" in capsys.readouterr().err


def test_a_tiny_test_set_gives_no_interval_and_says_so(plotted, undrawn):
    summary = plotted({"C": effect(chat=-1.0)}, n={"chat": 3, "instruct": 40})
    report = Path("plots/report.md").read_text()
    assert "C compared with base on chat: undecided; there are too few independent conversations" in report
    assert "chat: 3 conversations in 3 groups are too few for an interval" in report
    table = pd.read_csv("plots/test_loss.csv").set_index(["model", "source"])
    assert table.loc["C", "chat"][["low", "high"]].isna().all()
    assert summary["C"]["loss"]["chat"] == pytest.approx(table.loc["C", "chat"]["loss"], abs=1e-5)


def test_one_variant_alone_is_compared_with_base(plotted, undrawn):
    summary = plotted({"B": effect(chat=-0.3)}, recipes={"B": RECIPES["B"]})
    assert summary["verdict"] == {} and summary["B"]["vs_base"].startswith("better by")


def test_folders_that_params_yaml_does_not_name_are_ignored_and_named(plotted, undrawn, capsys):
    plotted()
    shutil.copytree("metrics/eval/A", "metrics/eval/old")
    main()
    assert "old" not in json.loads(Path("metrics/summary.json").read_text())
    assert "no variant or source of params.yaml has metrics/eval/old" in capsys.readouterr().out


def test_two_runs_write_the_same_bytes(plotted):
    plotted({"A": effect(chat=-0.2)})
    first = {path: path.read_bytes() for path in sorted(Path("plots").rglob("*.*"))}
    summary = Path("metrics/summary.json").read_bytes()
    main()
    assert {path: path.read_bytes() for path in sorted(Path("plots").rglob("*.*"))} == first
    assert Path("metrics/summary.json").read_bytes() == summary


def test_figures_of_an_earlier_run_do_not_stay_behind(plotted, undrawn, fake_run):
    plotted()
    Path("plots/stale.svg").write_text("old")
    main()
    assert not Path("plots/stale.svg").exists()


def test_the_charts_tables_have_the_rows_of_every_variant_that_logged_them(plotted, undrawn):
    plotted()
    # A does not evaluate while it trains; a row without numbers keeps its colour in the chart.
    for name, variants in {"train_loss": "ABC", "eval_loss": "BC", "learning_rate": "ABC"}.items():
        table = pd.read_csv(f"plots/{name}.csv")
        assert list(table.columns) == ["step", "variant", name]
        assert list(table["variant"].unique()) == ["A", "B", "C"]
        table = table.dropna()
        assert list(table["variant"].unique()) == list(variants)
        assert all(curve["step"].is_monotonic_increasing for _, curve in table.groupby("variant"))
    assert list(pd.read_csv("plots/test_loss.csv").columns) == ["model", "source", "loss", "low", "high"]


def test_the_stage_imports_no_training_library():
    code = "import sys, stages.plot.__main__; print(sorted({'torch', 'transformers', 'datasets', 'gradio'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
