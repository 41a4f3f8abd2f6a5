"""`make exp`: what each experiment changed and what came of it, in a table that fits a terminal."""

from __future__ import annotations

import re
import shutil

import pytest

from abctune.core.errors import UserError
from tools.exp_show import read_rows, rows_of
from tools.experiments import cells, titles, with_experiments

TABLE = ("python", "-m", "tools.experiments")


def commit(name: str, losses: dict[str, float], experiments=(), **variants) -> dict:
    """An entry of `dvc exp show --json`."""
    return {
        "rev": "c0ffee0" * 5,
        "name": name,
        "data": {
            "params": {"params.yaml": {"data": {"seed": 1, "variants": variants}}},
            "metrics": {
                "metrics/summary.json": {"data": {m: {"loss": {"overall": x}} for m, x in losses.items()}}
            },
            "deps": {"stages/train": {"hash": "1"}, "data/split/B": {"hash": "1"}},
        },
        "experiments": list(experiments),
    }


def experiment(entry: dict, state: str | None = None) -> dict:
    return {"name": entry["name"], "revs": [entry], "executor": state and {"state": state}}


def test_the_table_tells_what_changed_and_every_models_loss(study):
    rows = {row.name: row for row in read_rows("overall")}
    assert list(rows) == ["main", "seed-1", "c-mix", "b-rate"]
    assert rows["b-rate"].changed == ["B.train.learning_rate=0.0001"]
    assert rows["c-mix"].changed == ["C.mix.chat=7500"]
    assert rows["seed-1"].changed == ["seed=1"]
    assert list(rows["main"].losses) == ["base", "A", "B", "C"]
    assert rows["b-rate"].moved == {"B"} and rows["c-mix"].moved == {"C"}
    assert rows["b-rate"].losses["B"] == pytest.approx(1.25 * rows["main"].losses["B"])
    assert rows["b-rate"].losses["A"] == rows["main"].losses["A"]


def test_dvcs_table_in_a_pipe_has_what_differs_in_full(study):
    printed = study.tool("show").stdout
    header = printed.splitlines()[1]
    for column in ("variants.B.train.learning_rate", "variants.C.mix.chat", "seed"):
        assert column in header
    assert "…" not in printed and "data/split" not in header and "vs_base" not in header
    assert max(map(len, printed.splitlines())) <= 160
    kept = study.tool("show", "--keep", ".*vs_base").stdout.splitlines()[1]
    assert "B.vs_base" in kept and len(kept) > len(header)


def test_it_fits_160_columns_and_marks_other_test_rows(study):
    printed = study.run(*TABLE, COLUMNS="160").stdout
    assert all(len(line) <= 160 for line in printed.splitlines()[:5])
    for name, marked in {"main": False, "b-rate": False, "c-mix": False, "seed-1": True}.items():
        line = next(line for line in printed.splitlines() if line.strip().startswith(name))
        assert len(re.findall(r"\s\d\.\d{4}", line)) == 4, line
        assert ("*" in line) == marked, line


def test_a_new_variant_is_one_word_and_its_loss_a_column():
    main = commit("main", {"base": 3.0, "B": 2.0}, B={"mix": {"chat": 9}, "train": {"max_steps": 4}})
    recipe = {"mix": {"chat": 5, "instruct": 6}, "train": {"max_steps": 8}}
    run = commit("d", {"base": 3.0, "D": 1.5}, D=recipe)
    rows = rows_of([main | {"experiments": [experiment(run)]}], "overall")
    assert rows[1].changed == ["-B", "+D chat=5 instruct=6"]
    assert titles(rows, "overall") == [
        "experiment",
        "changed",
        "base overall",
        "B overall",
        "D overall",
        "shown",
    ]
    assert cells(rows[1], ["base", "B", "D"])[2:5] == ["3.0000", "–", "1.5000"]


def test_the_workspace_shows_only_while_it_differs(study):
    study.set(seed=5)
    assert [row.changed for row in read_rows("overall") if row.kind == "workspace"] == [["seed=5"]]


def test_losses_on_one_source_and_an_unknown_source(study):
    assert read_rows("chat")[0].losses != read_rows("overall")[0].losses
    with pytest.raises(UserError, match="no losses on 'nowhere'"):
        read_rows("nowhere")


def test_code_that_differs_is_named_since_params_do_not_explain_it():
    main, changed = commit("main", {"base": 3.0, "B": 2.0}), commit("e", {"base": 3.0, "B": 1.9})
    changed["data"]["deps"] = {"stages/train": {"hash": "2"}, "data/split/B": {"hash": "2"}}
    rows = rows_of([main | {"experiments": [experiment(changed)]}], "overall")
    assert rows[1].changed == ["[stages/train]"]


def test_a_queued_variants_stages_have_no_hashes_yet_and_are_no_changed_code():
    main, queued = commit("main", {"base": 3.0}), commit("e", {})
    queued["data"]["deps"] = {"stages/train": {"hash": None}}
    assert rows_of([main | {"experiments": [experiment(queued, "queued")]}], "overall")[1].changed == []


@pytest.mark.parametrize("state", ["failed", "queued", "running"])
def test_an_experiment_without_results_says_its_state(state):
    open_run = commit("e", {})
    open_run["data"]["metrics"] = {"metrics/summary.json": {"error": {"msg": "no such file"}}}
    rows = rows_of([commit("main", {"base": 3.0}, [experiment(open_run, state)])], "overall")
    assert rows[1].state == state and not rows[1].losses


def test_verdicts_are_grouped_by_what_they_are_against():
    entry = commit("main", {"base": 3.0, "A": 2.0, "a_vs_b": 2.0})
    entry["data"]["metrics"]["metrics/summary.json"]["data"]["verdict"] = {
        "a_vs_b_vs_A": "undecided 0.0 [-0.1, 0.1]",
    }
    for name in ("A", "a_vs_b"):
        entry["data"]["metrics"]["metrics/summary.json"]["data"][name]["vs_base"] = "better by 1.0 [0.9, 1.1]"
    assert rows_of([entry], "overall")[0].shown == "A and a_vs_b better than base"


def test_markdown_has_the_same_rows(study):
    lines = study.run(*TABLE, "--markdown").stdout.splitlines()
    assert lines[0] == "| experiment | changed | base overall | A overall | B overall | C overall | shown |"
    assert [line.split("|")[1].strip() for line in lines[2:6]] == ["main", "seed-1", "c-mix", "b-rate"]


def test_the_report_has_the_table_and_the_stage_stays_up_to_date(study):
    study.run(*TABLE, "--report", "dvc_plots/report.html")
    page = (study.root / "dvc_plots/report.html").read_text()
    section = page[page.index('<section id="experiments">') : page.index('<section id="losses">')]
    assert "B.train.learning_rate=0.0001" in section and "seed-1" in section
    assert not study.git("status", "--porcelain")


def test_without_a_report_it_says_which_command_makes_one(study):
    shutil.rmtree(study.root / "plots")
    with pytest.raises(UserError, match="dvc repro plot"):
        with_experiments(study.root / "plots/report.html", [], "overall")
