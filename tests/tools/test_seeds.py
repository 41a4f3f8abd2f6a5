"""Several seeds pooled: from real Git and DVC revisions, and with the seed effect next to the variants'."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from abctune.core.errors import UserError
from abctune.study.recipes import RecipeDifference, TestRows
from tests.plot.fake_run import effect, write_run
from tests.workspace import Workspace
from tools.pooling import Scores, pool_studies
from tools.seeds import main, own_sd, pooled, read_run, render, require_one_study


def sh(root: Path, *command: str) -> str:
    project = Workspace(root)
    return project.git(*command[1:]) if command[0] == "git" else project.run(*command).stdout


def commit_run(root: Path, seed: int, effects: dict, n: dict[str, int]) -> None:
    """A run on a tag of its own, its evaluations in the DVC cache as `dvc repro` leaves them."""
    write_run(root, effects, seed=seed, n=n)
    (root / "dvc.yaml").unlink()  # its stages have outputs inside metrics/eval, which is added whole here
    params = root / "params.yaml"
    params.write_text(params.read_text().replace("seed: 3407", f"seed: {seed}"))
    sh(root, "dvc", "add", "--quiet", "metrics/eval")
    sh(root, "git", "add", "params.yaml", "metrics/eval.dvc", "metrics/.gitignore")
    sh(root, "git", "commit", "-qm", f"seed {seed}")
    sh(root, "git", "tag", f"seed-{seed}")


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """Seeds 1, 2, 3: C is better than base on instruct in all; on chat, A moves by more between seeds than on average."""
    root = tmp_path_factory.mktemp("seeds")
    sh(root, "git", "init", "-q")
    sh(root, "dvc", "init", "--quiet")
    for seed, luck in ((1, -0.6), (2, 0.55), (3, 0.1)):
        commit_run(
            root, seed, {"A": effect(chat=luck), "C": effect(instruct=-0.4)}, {"chat": 40, "instruct": 40}
        )
    return root


REVISIONS = ["seed-1", "seed-2", "seed-3"]


def test_seeds_are_pooled_within_and_between(study, monkeypatch, capsys):
    monkeypatch.chdir(study)
    main(REVISIONS)
    printed = capsys.readouterr().out
    assert "- C is better than base on instruct by 0." in printed
    assert "over 3 seeds." in printed
    line = next(line for line in printed.splitlines() if line.startswith("- A against base on chat"))
    assert "not shown over 3 seeds: the interval contains 0" in line
    assert "The seed effect is larger than the difference: between seeds it varies by 0." in line
    assert "- seed 2: seed-2, 80 test rows" in printed
    assert "0 test rows are common to all" in printed


def test_the_cache_may_be_without_the_data(study, tmp_path, monkeypatch):
    shutil.copytree(study, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / ".dvc/cache/files")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"seed-1: metrics/eval/base/conversations.parquet is not in the cache.*dvc exp pull"
    ):
        read_run("seed-1")


def test_runs_of_two_studies_are_not_pooled(study, tmp_path, monkeypatch):
    shutil.copytree(study, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    runs = [read_run(revision) for revision in REVISIONS]
    with pytest.raises(UserError, match="name at least 3, each of another seed"):
        require_one_study(runs[:2])
    with pytest.raises(UserError, match=r"have the same seed \(1\): one run counted twice"):
        require_one_study([*runs, runs[0]])
    runs[2].params["variants"]["B"]["train"]["warmup_steps"] = 5
    with pytest.raises(UserError, match=r"differ in variants\.B\.train\.warmup_steps, not in the seed alone"):
        require_one_study(runs)


def test_an_unknown_revision_is_one_line(study, monkeypatch):
    monkeypatch.chdir(study)
    with pytest.raises(UserError, match=r"no revision 'nope' here .*dvc exp list"):
        read_run("nope")


def simulated(rng: np.random.Generator, k: int, shared: bool, seed_sd: float) -> RecipeDifference:
    """k seeds on 60 rows each, the same or all different; the truth is 0."""
    pool_of_rows = rng.normal(size=60 if shared else 60 * k)
    studies = []
    for seed in range(k):
        rows = np.arange(60) + (0 if shared else 60 * seed)
        values = seed_sd * rng.normal() + pool_of_rows[rows] + 0.5 * rng.normal(size=60)
        test = TestRows(np.ones(60), rows, np.repeat("chat", 60))
        studies.append(Scores(test, {"base": np.zeros((1, 60)), "B": values[None]}))
    found = pool_studies(
        studies, [("B", "base")], {"chat": ["chat"]}, margin=0.02, seed=int(rng.integers(1000)), resamples=199
    )
    return found.differences[0]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("seed_sd", [0.15, 0.5])
def test_the_pooled_interval_holds_the_truth_whether_or_not_seeds_share_rows(shared, seed_sd):
    rng = np.random.default_rng(0)
    found = [simulated(rng, 5, shared, seed_sd) for _ in range(1000)]
    # Rows that differ between seeds are counted as a floor too: the interval may be too wide there, not too narrow.
    assert 0.93 <= np.mean([one.low <= 0 <= one.high for one in found]) <= 0.99
    assert np.mean([own_sd(one) ** 2 for one in found]) == pytest.approx(seed_sd**2, rel=0.15)


def test_without_a_seed_effect_none_is_found(study):
    rng = np.random.default_rng(0)
    found = [simulated(rng, 5, True, 0.0) for _ in range(500)]
    # A spread of 0.5² / 60 is the rows' noise.
    assert np.mean([own_sd(one) ** 2 for one in found]) < 0.005
    one_seed = [np.sqrt(one.se_rows**2 + one.interaction) for one in found]
    assert np.mean(one_seed) == pytest.approx(np.sqrt(1.25 / 60), rel=0.05)


def test_a_studys_replicates_are_averaged_before_seeds_are_pooled():
    rng = np.random.default_rng(1)
    rows = TestRows(np.ones(60), np.arange(60), np.repeat("chat", 60))
    noise = rng.normal(size=(2, 60))
    plain = [Scores(rows, {"base": np.zeros((1, 60)), "B": rng.normal(size=(1, 60))}) for _ in range(3)]
    doubled = [
        Scores(rows, one.sums | {"B": np.concatenate([one.sums["B"] + noise[:1], one.sums["B"] - noise[:1]])})
        for one in plain
    ]
    results = [
        pool_studies(scores, [("B", "base")], {"chat": ["chat"]}, margin=0.02, seed=1, resamples=199)
        for scores in (plain, doubled)
    ]
    assert results[0].differences[0].by_replicate == pytest.approx(results[1].differences[0].by_replicate)


def test_the_numbers_stand_beside_the_words(study, monkeypatch):
    monkeypatch.chdir(study)
    runs = [read_run(revision) for revision in REVISIONS]
    page = render(runs, pooled(runs))
    header = next(line for line in page.splitlines() if line.startswith("| pair"))
    rows = [line for line in page.splitlines() if " − " in line and line.startswith("|")]
    assert len(rows) == 18  # 6 pairs on 3 sets
    assert all(row.count("|") == header.count("|") for row in rows)
