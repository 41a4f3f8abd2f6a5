"""python -m tools.promote: on a finished study, with planted results."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from abctune.core.errors import UserError
from tests.conftest import made_once
from tests.workspace import Workspace
from tools.promote.registry import tag
from tools.publish.package import promotion

PROMOTE, DO_NOT, UNDECIDED = 0, 3, 4


def plant(study: Workspace, variant: str, **nats: float) -> None:
    """Let a variant's every replicate be so many nats per token above (or below) where it was, by source."""
    path = study.root / "metrics/eval" / variant / "conversations.parquet"
    rows = pd.read_parquet(path)
    shift = rows["source"].map(nats).fillna(0.0)
    rows.assign(nll=rows["nll"] + shift * rows["n_supervised"]).to_parquet(path, index=False)


def settle(study: Workspace, *variants: str) -> None:
    """Collect, plot and commit, as `dvc repro` and a person would."""
    for variant in variants:
        study.stage("collect", variant)
    study.stage("plot")
    changed = [f"{stage}@{variant}" for stage in ("eval", "collect") for variant in variants]
    study.run("dvc", "commit", "--force", "--quiet", *changed, "plot")
    study.commit("results")


def promote(study: Workspace, *arguments: str) -> subprocess.CompletedProcess[str]:
    return study.tool("promote", *arguments, check=False)


@pytest.fixture(scope="session")
def winner_once(tmp_path_factory: pytest.TempPathFactory, study_once: Path) -> Path:
    """C is far better than base on both sources and equal to it on general text."""

    def make(folder: Path) -> None:
        study = Workspace(shutil.copytree(study_once, folder, symlinks=True))
        base = pd.read_parquet(folder / "metrics/eval/base/conversations.parquet").set_index("id")["nll"]
        path = folder / "metrics/eval/C/conversations.parquet"
        rows = pd.read_parquet(path)
        general = rows["source"] == "general"
        rows.loc[general, "nll"] = rows["id"].map(base)[general]
        rows.to_parquet(path, index=False)
        plant(study, "C", chat=-0.3, instruct=-0.3)
        settle(study, "C")

    return made_once(tmp_path_factory, "study-with-a-winner", make)


@pytest.fixture
def with_a_winner(tmp_path: Path, winner_once: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A study of one's own in which C wins; the test works in its folder."""
    root = shutil.copytree(winner_once, tmp_path / "study", symlinks=True)
    monkeypatch.chdir(root)
    return Workspace(root)


def test_a_clear_winner_is_promoted_with_the_reasons_in_the_tag(with_a_winner: Workspace) -> None:
    study = with_a_winner
    done = promote(study)
    assert done.returncode == PROMOTE, done.stdout + done.stderr
    assert done.stdout.startswith("promote: C as the first\n")
    assert "+ C is better than base overall: −0.3" in done.stdout
    assert "+ C is not worse than base on general text by 0.02 or more" in done.stdout
    assert study.git("tag") == ""  # nothing is written without --yes

    assert promote(study, "--yes").returncode == PROMOTE
    tags = study.git("tag").split()
    assert any(tag.startswith("C@v") for tag in tags) and any(tag.startswith("C#prod") for tag in tags)
    message = study.git("tag", "-n99", "--list", "C#prod*")
    assert "C is better than base overall" in message
    assert "C is better than base overall" in promotion("C")  # what publish puts into the card
    assert promotion("B") == ""

    again = promote(study)
    assert again.returncode == DO_NOT  # it is as good as itself, not better
    assert again.stdout.startswith("do not promote: C instead of C v0.0.1\n")

    plant(study, "B", chat=-0.8, instruct=-0.8)
    settle(study, "B")
    better = promote(study, "--target", "chat")
    assert better.stdout.splitlines()[0].endswith("B instead of C v0.0.1")
    assert "+ B is better than C v0.0.1 on chat" in better.stdout


def test_a_winner_that_forgets_is_not_promoted(with_a_winner: Workspace) -> None:
    plant(with_a_winner, "C", general=0.2)
    settle(with_a_winner, "C")
    done = promote(with_a_winner)
    assert done.returncode == DO_NOT
    assert "- C is worse than base on general text by 0.02 or more: 0.2" in done.stdout


def test_without_a_difference_nothing_is_decided(study: Workspace) -> None:
    done = promote(study)
    assert done.returncode in (DO_NOT, UNDECIDED)
    assert "promote: " in done.stdout.splitlines()[0] or "undecided: " in done.stdout.splitlines()[0]
    assert "- " in done.stdout or "? " in done.stdout


def test_results_that_verify_rejects_are_not_promoted(with_a_winner: Workspace) -> None:
    path = with_a_winner.root / "models/C/adapter_model.safetensors"
    content = path.read_bytes()
    path.unlink()  # a link into the cache
    path.write_bytes(content[:-4] + b"\0\0\x80\x3f")
    done = promote(with_a_winner)
    assert done.returncode == DO_NOT
    assert "- `python -m tools.verify` finds fault: models/C/adapter_model.safetensors" in done.stdout


def test_one_replicate_decides_nothing(with_a_winner: Workspace) -> None:
    study = with_a_winner
    path = study.root / "metrics/eval/C/conversations.parquet"
    rows = pd.read_parquet(path)
    rows[rows["replicate"] == 1].to_parquet(path, index=False)
    settle(study, "C")
    done = promote(study, "C")
    assert done.returncode == UNDECIDED
    assert "? one replicate was compared, which says nothing about a recipe" in done.stdout


def test_a_tag_names_a_commit_so_changes_come_first(with_a_winner: Workspace) -> None:
    with Path(with_a_winner.root / "README.md").open("w") as file:
        file.write("committed\n")
    with_a_winner.commit("a readme")
    (with_a_winner.root / "README.md").write_text("changed\n")
    done = promote(with_a_winner, "--yes")
    assert done.returncode == 1 and "commit them first" in done.stderr


def test_a_variant_that_nobody_could_get_is_not_tagged(with_a_winner: Workspace) -> None:
    path = with_a_winner.root / "dvc.yaml"
    path.write_text(path.read_text().replace("  C:\n    path: models/C\n", "  Z:\n    path: models/C\n"))
    with_a_winner.commit("without C")
    with pytest.raises(UserError, match=r"lacks variant C; add `C: \{path: models/C, type: model\}` there"):
        tag("C", "prod", "why")
    assert with_a_winner.git("tag") == ""


def test_the_help_documents_the_exit_status(study: Workspace) -> None:
    assert "0 promote, 3 do not promote, 4 undecided" in " ".join(promote(study, "--help").stdout.split())
