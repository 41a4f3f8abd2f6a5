"""Nothing is fetched twice: verified downloads are kept outside the outputs and shared by all clones."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from stages.fetch import cache
from tests.fetch.conftest import Project, ProjectHere
from tests.fetch.test_hub import ROWS, dataset, model  # noqa: F401 (fixtures)
from tests.fetch.test_wheel import GOOD, chitchat_wheel
from tests.hub_server import Hub, Repository


def test_what_was_fetched_once_needs_no_network_again(
    project: Project,
    hub: Hub,
    model: Repository,  # noqa: F811
) -> None:
    project.fetched("--model")
    first = project.outputs()
    shutil.rmtree(project.base)  # as DVC does before a stage runs
    hub.requests.clear()
    project.fetched("--model", HF_ENDPOINT="http://127.0.0.1:9")
    assert project.outputs() == first
    assert hub.requests == []


def test_a_damaged_entry_is_fetched_again(project: Project, hub: Hub, dataset: Repository) -> None:  # noqa: F811
    project.fetched("chat")
    (entry,) = [path for path in (project.cache / "sha256").rglob("*") if path.is_file()]
    content = bytearray(entry.read_bytes())
    content[100] ^= 1
    entry.chmod(0o644)
    entry.write_bytes(content)
    project.fetched("chat")
    assert project.records() == ROWS
    assert len(hub.store_requests) == 2


def test_a_wheel_is_downloaded_once(here: ProjectHere) -> None:
    chitchat_wheel(here, GOOD)
    here.fetched("chat")
    first = here.outputs()
    shutil.rmtree(here.wheels)
    here.fetched("chat")
    assert here.outputs() == first


def test_a_wheel_that_is_no_longer_pinned_is_not_taken_from_the_cache(here: ProjectHere) -> None:
    chitchat_wheel(here, GOOD)
    here.fetched("chat")
    here.params["profiles"]["tiny"]["sources"]["chat"]["sha256"] = ["0" * 64]
    assert "which is not listed" in here.refused("chat")


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"ABCTUNE_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HF_HOME": "/b", "XDG_CACHE_HOME": "/c"}, "/b/abctune"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/abctune"),
        ({"HOME": "/d"}, "/d/.cache/abctune"),
    ],
)
def test_the_folder_is_the_one_documented(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], folder: str
) -> None:
    for name in ("ABCTUNE_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert str(cache.cache_folder()) == folder


def test_two_projects_that_fetch_at_once_download_once(
    project: Project,
    hub: Hub,
    dataset: Repository,  # noqa: F811
) -> None:
    project.write_params()
    other = project.root / "other"
    other.mkdir()
    shutil.copy(project.root / "params.yaml", other)
    running = [
        subprocess.Popen([sys.executable, "-m", "stages.fetch", "chat"], cwd=root, env=project.environment)
        for root in (project.root, other)
    ]
    assert [one.wait(timeout=60) for one in running] == [0, 0]
    assert len(hub.store_requests) == 1
    assert (other / "data/raw/chat/rows.parquet").read_bytes() == (
        project.raw / "chat/rows.parquet"
    ).read_bytes()
