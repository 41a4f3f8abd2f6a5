"""docs/sharing.md with a folder as the remote: a second clone, an experiment that travels, versions and stages of a model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.finished import write_adapter
from tests.workspace import ROOT, Workspace

ADAPTER = "models/B/adapter_model.safetensors"
EXPERIMENT = "b-again"


class Team:
    """Two people's clones, a Git repository and a DVC remote between them."""

    def __init__(self, first: Path, between: Path) -> None:
        self.first = Workspace(first)
        self.origin, self.store = between / "origin.git", between / "store"
        self.between = between

    def share(self) -> None:
        self.first.git("init", "--quiet", "--bare", "--initial-branch", "main", str(self.origin))
        self.first.git("remote", "add", "origin", str(self.origin))
        self.first.run("dvc", "remote", "add", "--default", "store", str(self.store))
        self.first.git("commit", "--all", "--quiet", "--message", "Where results are shared")
        self.first.run("dvc", "push")
        self.first.git("push", "--quiet", "--set-upstream", "origin", "main")

    def clone(self, name: str) -> Workspace:
        self.first.git("clone", "--quiet", str(self.origin), str(self.between / name))
        return Workspace(self.between / name)


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory, study_once: Path) -> Team:
    root = tmp_path_factory.mktemp("team")
    shutil.copytree(study_once, root / "first", symlinks=True)
    team = Team(root / "first", root)
    team.share()
    return team


@pytest.fixture(scope="module")
def second(team: Team) -> Workspace:
    second = team.clone("second")
    second.run("dvc", "pull")
    return second


def test_after_dvc_pull_a_clone_has_everything_and_nothing_to_run(team: Team, second: Workspace) -> None:
    assert (second.root / ADAPTER).read_bytes() == (team.first.root / ADAPTER).read_bytes()
    assert (second.root / "models/base/model.safetensors").exists()
    assert "Data and pipelines are up to date." in second.run("dvc", "status").stdout
    printed = second.run("dvc", "repro").stdout
    assert "Running stage" not in printed
    assert "Data and pipelines are up to date." in printed
    assert second.git("status", "--porcelain") == ""
    assert second.tool("verify").returncode == 0


def test_an_experiment_travels_with_its_adapter(team: Team, second: Workspace) -> None:
    first = team.first
    first.set(variants__B__train__learning_rate=1e-4)
    write_adapter(first.root, "B", seed=77)
    first.run("dvc", "commit", "--force", "train@B", "eval@B")
    first.run("dvc", "exp", "save", "--name", EXPERIMENT)
    first.run("dvc", "exp", "push", "origin", EXPERIMENT)
    wanted = (first.root / ADAPTER).read_bytes()
    assert (second.root / ADAPTER).read_bytes() != wanted

    assert EXPERIMENT in second.run("dvc", "exp", "list", "origin").stdout
    second.run("dvc", "exp", "pull", "origin", EXPERIMENT)
    second.run("dvc", "exp", "apply", EXPERIMENT)
    assert (second.root / ADAPTER).read_bytes() == wanted
    assert second.params()["variants"]["B"]["train"]["learning_rate"] == 1e-4


def test_a_promoted_variant_is_had_by_its_stage_and_by_its_version(team: Team) -> None:
    first = team.clone("registrar")
    wanted = first.run("dvc", "list", ".", "models/C").stdout.split()
    first.run("gto", "register", "C", "--version", "v1.0.0")
    first.run("gto", "assign", "C", "--version", "v1.0.0", "--stage", "prod")
    first.git("push", "--quiet", "--tags", "origin")

    shown = first.run("gto", "show", "--json").stdout
    assert '"v1.0.0"' in shown and '"prod"' in shown
    for option, value in (("--stage", "prod"), ("--rev", "v1.0.0")):
        got = team.between / f"by{option}"
        first.run("dvc", "artifacts", "get", str(team.origin), "C", option, value, "--out", str(got))
        assert sorted(path.name for path in got.iterdir()) == sorted(wanted)


def test_every_variant_is_in_the_registry() -> None:
    read = YAML(typ="safe", pure=True)
    artifacts = read.load((ROOT / "dvc.yaml").read_text())["artifacts"]
    variants = read.load((ROOT / "params.yaml").read_text())["variants"]
    assert {name: artifact["path"] for name, artifact in artifacts.items()} == {
        name: f"models/{name}" for name in variants
    }
