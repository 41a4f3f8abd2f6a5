"""A download that is cut, stalls or is altered: at most 3 tries with back-off, then not 0, and nothing half-fetched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fetch.conftest import Project
from tests.fetch.test_hub import ROWS, model_files, parquet, safetensors
from tests.hub_server import Hub, Repository

# Say what is waited for instead of waiting; give up on a silent connection after a moment.
QUICK = """
import sys, time
time.sleep = lambda seconds: print(f"waits {seconds:g} s, trying again", file=sys.stderr)
import httpx, stages.fetch.hub
stages.fetch.hub.TIMEOUT = httpx.Timeout(0.5)
"""


def cut(hub: Hub, _: Repository) -> None:
    hub.cuts = [1000, 300, 200]


def stall(hub: Hub, _: Repository) -> None:
    hub.stalls = [1000, 300, 200]


def trouble(hub: Hub, _: Repository) -> None:
    hub.answers = [503, 503, 503]


def alter(_: Hub, repository: Repository) -> None:
    for name, content in repository.files.items():
        repository.served[name] = content[:-1] + bytes([content[-1] ^ 1])


FAULTS = ((cut, 3, "the connection was cut"), (stall, 3, "the connection was cut"), (trouble, 3, "status 503"),
          (alter, 1, "has not the hash that the hub lists"))  # fmt: skip


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


@pytest.mark.parametrize(("fault", "tries", "says"), FAULTS, ids=[fault.__name__ for fault, *_ in FAULTS])
@pytest.mark.parametrize("what", ["chat", "--model"])
def test_a_bad_download_is_tried_thrice_at_most_and_leaves_nothing(
    hub: Hub, tmp_path: Path, what: str, fault: Callable[[Hub, Repository], None], tries: int, says: str
) -> None:
    project = Project(tmp_path)
    project.environment["HF_ENDPOINT"] = hub.url
    if what == "chat":
        repository = hub.add("dataset", "someone/chats", {"train.parquet": parquet(ROWS)})
        project.hub_source(repository, "train.parquet")
    else:
        repository = hub.add("model", "someone/small", model_files())
        project.hub_model(repository)
    project.fetched(what)
    before = project.outputs()
    # Another revision of the same: what was fetched before is not taken for it.
    name = "train.parquet" if what == "chat" else "model.safetensors"
    repository.files[name] = parquet(ROWS[:2000]) if what == "chat" else safetensors(2000)
    repository.revision = "1" * 40
    (project.hub_source(repository, name) if what == "chat" else project.hub_model(repository))
    hub.requests.clear()
    hub.store_requests.clear()

    fault(hub, repository)
    done = project.fetch(what, prelude=QUICK)

    assert done.returncode == 1, done.stdout
    *notes, line = done.stderr.splitlines()
    assert line.startswith("error: ") and says in line
    asked = hub.requests if fault is trouble else hub.store_requests
    assert len(asked) == tries or (fault is alter and len(asked) <= 1)
    waits = [note for note in notes if note.startswith("waits")]
    assert waits == ["waits 1 s, trying again", "waits 4 s, trying again"][: tries - 1]
    assert project.outputs() == before

    repository.served.clear()
    done = project.fetched(what)  # the fault over, the next run needs no help
    assert project.outputs() != before
