"""Change a number, run, compare; a grid in the queue; what a failed run leaves. On a really trained, very small study."""

from __future__ import annotations

import json
import re
import time

import pytest

GRID = {(rate, margin) for rate in (1e-3, 1e-2) for margin in (0.02, 0.05)}
DEADLINE = 1200  # seconds for four runs of three stages; a busy machine takes a few minutes
NOTE = "note: params.yaml keeps what this experiment set; `git checkout params.yaml` restores it"


def results(project, revision: str) -> tuple[dict, dict]:
    """A revision's summary and B's training record, out of Git and the cache."""
    from dvc.api import DVCFileSystem

    files = DVCFileSystem(str(project.root), rev=revision)
    return tuple(
        json.loads(files.read_bytes(path))
        for path in ("metrics/summary.json", "metrics/train/B/training.json")
    )


def margin_of(project, revision: str) -> float:
    """The margin in a revision's params.yaml."""
    from dvc.api import params_show

    return params_show(repo=str(project.root), rev=revision)["evaluation"]["margin"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "variants.B.train.max_steps=-3",
            "variants.B.train.max_steps: input should be greater than or equal to 1",
        ),
        ("+variants.B.train.max_stps=3", "variants.B.train.max_stps"),
        ("variants.B.mix.chat=many", "variants.B.mix.chat"),
    ],
)
def test_a_failed_experiment_tells_what_it_left_in_params(restored, setting, message):
    failed = restored.run("dvc", "exp", "run", "-S", setting, check=False)
    said = failed.stdout + failed.stderr
    assert failed.returncode and message in said and said.count(NOTE) == 1
    assert "params.yaml" in restored.git("status", "--porcelain")
    restored.git("checkout", "params.yaml")
    repeated = restored.run("dvc", "repro").stdout
    assert not re.search(r"> python -m stages\.(train|eval)", repeated)  # back from the run cache
    assert not restored.git("status", "--porcelain")


def test_dvc_refuses_a_misspelt_key_and_leaves_params_alone(restored):
    failed = restored.run("dvc", "exp", "run", "-S", "variants.B.train.max_stps=3", check=False)
    assert failed.returncode and "max_stps" in failed.stderr
    assert not restored.git("status", "--porcelain")


def test_a_failed_temporary_run_has_nothing_to_restore(restored):
    failed = restored.run("dvc", "exp", "run", "--temp", "-S", "variants.B.train.max_steps=-3", check=False)
    said = failed.stdout + failed.stderr
    assert failed.returncode and "max_steps" in said and "note:" not in said
    assert not restored.git("status", "--porcelain")


def test_a_learning_rate_costs_that_variants_training_and_nothing_else(restored):
    done = restored.run("dvc", "exp", "run", "-n", "b-rate", "-S", "variants.B.train.learning_rate=1e-2")
    assert re.findall(r"Running stage '([^']+)'", done.stdout) == ["train@B", "eval@B", "collect@B", "plot"]
    before, after = results(restored, "main")[0], results(restored, "b-rate")[0]
    assert after["B"]["loss"] != before["B"]["loss"]
    assert {name: after[name]["loss"] for name in ("base", "C")} == {
        name: before[name]["loss"] for name in ("base", "C")
    }


def test_a_queued_grid_runs_the_code_of_the_moment_it_was_queued(restored):
    rates = ",".join(f"{rate:g}" for rate in sorted({rate for rate, _ in GRID}))
    margins = ",".join(f"{margin:g}" for margin in sorted({margin for _, margin in GRID}))
    queue = ("-S", f"variants.B.train.learning_rate={rates}", "-S", f"evaluation.margin={margins}")
    restored.run("dvc", "exp", "run", "--queue", *queue)
    later = restored.root / "stages/train/data.py"
    later.write_text('raise SystemExit("a later edit")\n' + later.read_text())
    restored.run("dvc", "queue", "start")
    names = finished_tasks(restored)
    later_edit = restored.git("diff", "--stat")
    assert "stages/train/data.py" in later_edit and "params.yaml" not in later_edit

    found, losses = set(), set()
    for name in names:
        summary, record = results(restored, name)
        found.add((round(record["arguments"]["learning_rate"], 9), margin_of(restored, name)))
        losses.add(summary["B"]["loss"]["overall"])
        assert summary["C"]["loss"] == results(restored, "main")[0]["C"]["loss"]
    scale = restored.params()["profiles"]["tiny"]["train"]["learning_rate_scale"]
    assert found == {(round(rate * scale, 9), margin) for rate, margin in GRID}
    assert len(losses) == 2  # one for each rate: a margin trains nothing


@pytest.mark.faults  # minutes long
def test_two_branches_that_trained_merge_without_a_training(restored):
    """As docs/experiments.md says in "When Git and DVC disagree"."""
    start = restored.git("rev-parse", "HEAD").strip()
    for branch, variant in (("b-longer", "B"), ("c-longer", "C")):
        restored.git("checkout", "--quiet", "-b", branch, start)
        restored.run("dvc", "exp", "run", "--set-param", f"variants.{variant}.train.max_steps=6")
        restored.commit(f"{variant} trains longer")
    try:
        restored.run("git", "merge", "b-longer", check=False)
        assert "UU dvc.lock" in restored.git("status", "--porcelain")
        restored.git("checkout", "--ours", "dvc.lock", "plots", "metrics")
        restored.git("add", "--all")
        merged = restored.run("dvc", "repro").stdout
        assert not re.search(r"> python -m stages\.(train|eval)", merged), merged
        restored.commit("merge")
        variants = restored.params()["variants"]
        assert {name: variants[name]["train"]["max_steps"] for name in "BC"} == {"B": 6, "C": 6}
        assert "Data and pipelines are up to date." in restored.run("dvc", "status").stdout
        assert not restored.git("status", "--porcelain")
    finally:
        restored.git("checkout", "--quiet", "--force", "main")


def finished_tasks(project) -> list[str]:
    """The queue's experiments, once all have ended well."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        time.sleep(5)
        status = project.run("dvc", "queue", "status").stdout
        states = re.findall(r"^\w{7} +(\S+) .* (Queued|Running|Success|Failed)\s*$", status, re.M)
        assert "Failed" not in status, status
        if len(states) == len(GRID) and all(state == "Success" for _, state in states):
            return [name for name, _ in states]
    raise AssertionError(f"not done after {DEADLINE} s:\n{status}")
