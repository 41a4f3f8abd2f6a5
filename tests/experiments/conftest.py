"""Studies with experiments in them: made up in seconds for tables and charts, really trained for the workflows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import made_once
from tests.finished import make_finished
from tests.workspace import Workspace, make_workspace


class Study(Workspace):
    """A project in which everything has run, and whose experiments a test makes by hand."""

    def save(self, name: str, scale: dict[str, float], **params: object) -> None:
        """An experiment without a run: `params` changed, and the results of `scale`'s models multiplied."""
        self.set(**params)
        self.scale_results(scale)
        self.run("dvc", "exp", "save", "--force", "--name", name)
        self.git("checkout", "--quiet", ".")

    def scale_results(self, scale: dict[str, float]) -> None:
        path = self.root / "metrics/summary.json"
        summary = json.loads(path.read_text())
        for model, factor in scale.items():
            losses = summary[model]["loss"]
            summary[model]["loss"] = {on: loss * factor for on, loss in losses.items()}
        path.write_text(json.dumps(summary))
        for name in ("train_loss", "eval_loss", "test_loss"):
            self.scale_table(name, scale)

    def scale_table(self, name: str, scale: dict[str, float]) -> None:
        import pandas as pd

        path = self.root / f"plots/{name}.csv"
        table = pd.read_csv(path)
        of = table["model" if name == "test_loss" else "variant"]
        factor = of.map(scale).fillna(1.0)
        for column in {"loss", "low", "high", name} & set(table.columns):
            table[column] *= factor
        table.to_csv(path, index=False)


@pytest.fixture(scope="session")
def study_once(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Path:
    """A study and three experiments on it: another rate for B, another mix for C, another seed."""

    def make(folder: Path) -> None:
        finished = made_once(tmp_path_factory, "study", lambda place: make_finished(place, small_model))
        study = Study(shutil.copytree(finished, folder, symlinks=True))
        study.save("b-rate", {"B": 1.25}, variants__B__train__learning_rate=1e-4)
        study.save("c-mix", {"C": 0.8}, variants__C__mix__chat=7500)
        study.save("seed-1", {"base": 1.01, "A": 1.01, "B": 1.01, "C": 1.01}, seed=1)

    return made_once(tmp_path_factory, "study-with-experiments", make)


@pytest.fixture
def study(study: Workspace) -> Study:
    return Study(study.root)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Iterator[Workspace]:
    """B and C really trained on a very small model, and committed; a file's own, which it leaves as it found it."""

    def make(folder: Path) -> None:
        project = make_workspace(folder, small_model)
        variants = project.params()["variants"]
        project.set(variants={name: variants[name] for name in "BC"}, profiles__tiny__eval__task_prompts=0)
        project.run("dvc", "repro", "--quiet")
        project.commit("run")

    once = made_once(tmp_path_factory, "trained", make)
    project = Workspace(shutil.copytree(once, tmp_path_factory.mktemp("trained") / "project", symlinks=True))
    yield project
    project.run("dvc", "queue", "kill", "--force", "--all", check=False)
    project.run("dvc", "queue", "stop", "--kill", check=False)


@pytest.fixture
def restored(trained: Workspace) -> Iterator[Workspace]:
    """Whatever a test does, the next one starts from the commit."""
    yield trained
    trained.git("checkout", "--quiet", ".")
    trained.run("dvc", "checkout", "--quiet", "--force")
