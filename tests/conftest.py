"""Projects for tests, see tests/workspace.py."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests import small
from tests.finished import make_finished
from tests.workspace import Workspace, make_workspace


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "small"
    small.write_model(folder)
    return folder


@pytest.fixture
def workspace(tmp_path: Path, small_model: Path) -> Workspace:
    """A fresh Git and DVC project on a very small model; nothing has run yet."""
    return make_workspace(tmp_path, small_model)


@pytest.fixture(scope="session")
def split_once(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Path:
    """A project whose data are split, made once; tests copy it."""
    project = make_workspace(tmp_path_factory.mktemp("split"), small_model)
    project.stage("fetch", "--model")
    for source in ("chat", "instruct"):
        project.stage("fetch", source)
    for stage in ("mix", "format", "split"):
        for variant in "ABC":
            project.stage(stage, variant)
    return project.root


@pytest.fixture
def ready_to_train(tmp_path: Path, split_once: Path) -> Workspace:
    """A project of its own in which every stage before train has run."""
    shutil.copytree(split_once, tmp_path, dirs_exist_ok=True)
    return Workspace(tmp_path)


@pytest.fixture(scope="session")
def study_once(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Path:
    return make_finished(tmp_path_factory.mktemp("study"), small_model).root


@pytest.fixture
def study(tmp_path: Path, study_once: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A study of one's own in which everything has run and is in order; the test works in its folder."""
    root = tmp_path / "study"
    shutil.copytree(study_once, root, symlinks=True)
    monkeypatch.chdir(root)
    return Workspace(root)
