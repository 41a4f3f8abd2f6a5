"""A demo on planted models, served over loopback by a thread of the test process."""

from __future__ import annotations

import os

# Before llama.cpp is loaded: its threads wait by spinning, and on a machine that is busy with other work a token
# then takes seconds.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn

from abctune.core.params import load_params
from abctune.llm.tokenizer import load_tokenizer
from app.__main__ import listen
from app.engines import Engine
from app.engines.choose import load_engine
from app.models import Models, find_models
from app.server import build_app
from app.service import Service
from tests.app import planted

PARAMS = load_params()


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("app")
    planted.write_project(root)
    shutil.copy("params.yaml", root)
    return root


@pytest.fixture(scope="session")
def models(project: Path) -> Models:
    return find_models(project, project / "models/base", PARAMS)


@pytest.fixture(scope="session")
def tokenizer(project: Path):
    return load_tokenizer(project / "models/base")


@pytest.fixture(scope="session")
def engines(models: Models, tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Engine]:
    """Engines by name. One is loaded when a test first asks for it: the browser's tests never wait for torch."""
    cache = tmp_path_factory.mktemp("converted")

    class Loaded(dict[str, Engine]):
        def __missing__(self, name: str) -> Engine:
            return self.setdefault(name, load_engine(name, models, tokenizer, cache))

    return Loaded()


@pytest.fixture(params=["llama.cpp", "transformers"])
def engine(request: pytest.FixtureRequest, engines: dict[str, Engine]) -> Engine:
    return engines[request.param]


@pytest.fixture
def token_by_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small model writes whole answers between two pieces; tests of what happens on the way see each token."""
    monkeypatch.setattr("app.engines.llama_cpp.PIECE_SECONDS", 0.0)


@pytest.fixture(scope="session")
def service(models: Models, engines: dict[str, Engine], tokenizer) -> Service:
    return Service(models, engines["llama.cpp"], tokenizer, waiting=200)


@contextmanager
def serving(service: Service, **options: object) -> Iterator[str]:
    """The address of a server that runs for the length of the block."""
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(
        uvicorn.Config(build_app(service, **options), log_level="error", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="session")
def address(service: Service) -> Iterator[str]:
    with serving(service) as url:
        yield url
