"""A folder with a params.yaml of the test's own, in which the real `python -m stages.fetch` runs."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from stages.fetch.__main__ import main
from tests import warm
from tests.hub_server import Hub, Repository

ROOT = Path(__file__).parents[2]
# What of this machine's settings could reach the network, or a token, behind a test's back.
UNSET = (
    "HF_TOKEN",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
)
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
NO_WAIT = "import stages.fetch.retry; stages.fetch.retry.FIRST_WAIT = 0"  # a prelude for Project.fetch


class Project:
    """A folder to fetch into."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.wheels = root / "wheels"
        self.raw = root / "data/raw"
        self.base = root / "models/base"
        self.home = root / "hf-home"
        self.cache = root / "cache"
        self.params = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text())
        self.environment = {
            name: value for name, value in os.environ.items() if name not in (*UNSET, *PROXIES)
        } | {
            "PYTHONPATH": str(ROOT),
            "HF_HOME": str(self.home),
            "ABCTUNE_CACHE": str(root / "cache"),
            "HF_ENDPOINT": "http://127.0.0.1:9",  # nothing listens there
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.wheels),
        }

    def source(self, **origin: Any) -> None:
        """Make `origin` where the source `chat` comes from."""
        self.params["profiles"]["tiny"]["sources"]["chat"] = origin

    def hub_source(self, repository: Repository, *files: str) -> None:
        name, revision = repository.name, repository.revision
        self.source(origin="hub", repo=name, revision=revision, files=list(files), license="MIT")

    def model(self, **origin: Any) -> None:
        self.params["profiles"]["tiny"]["model"] = origin

    def hub_model(self, repository: Repository) -> None:
        self.model(origin="hub", repo=repository.name, revision=repository.revision, license="llama3.2")

    def own(self, name: str, content: bytes) -> None:
        """A data file of the user's own, named as the source `chat`."""
        path = self.root / "data/own" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self.source(origin="local", path=f"data/own/{name}")

    def wheel(self, package: str, version: str, files: dict[str, bytes]) -> str:
        """Put a wheel where pip finds it; return its sha256."""
        self.wheels.mkdir(exist_ok=True)
        name = package.replace("-", "_")
        about = f"{name}-{version}.dist-info"
        path = self.wheels / f"{name}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(
                f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
            )
            archive.writestr(
                f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            for member, content in files.items():
                archive.writestr(member, content)
            archive.writestr(f"{about}/RECORD", "")
        return hashlib.sha256(path.read_bytes()).hexdigest()

    def fetch(
        self, *arguments: str, prelude: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `python -m stages.fetch`; `prelude` is code that runs in that process first."""
        self.write_params()
        run = f"import runpy, sys\n{prelude}\nsys.argv[1:] = {list(arguments)!r}\nrunpy.run_module('stages.fetch', run_name='__main__')"
        command = ["python", "-c", run] if prelude else ["python", "-m", "stages.fetch", *arguments]
        wanted = self.environment | environment
        # What a library has set in the tests' own process, such as HF_HUB_OFFLINE, a test may set to the same value.
        chosen = {
            name: value for name, value in wanted.items() if os.environ.get(name) != value
        } | environment
        if found := warm.find(command, wanted, chosen):
            return subprocess.CompletedProcess(command, *warm.run(found, self.root))
        return subprocess.run(
            [sys.executable, *command[1:]],
            cwd=self.root,
            env=wanted,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def write_params(self) -> None:
        with (self.root / "params.yaml").open("w") as file:
            YAML().dump(self.params, file)

    def fetched(self, *arguments: str, **options: str) -> subprocess.CompletedProcess[str]:
        """Run a fetch that must succeed."""
        done = self.fetch(*arguments, **options)
        assert done.returncode == 0, done.stderr
        return done

    def refused(self, *arguments: str, **options: str) -> str:
        """Run a fetch that must fail as a user should see it: one line, nothing half-written; return the line."""
        before = self.outputs()
        done = self.fetch(*arguments, **options)
        assert done.returncode == 1, done.stdout
        *notes, line = done.stderr.splitlines()
        assert line.startswith("error: ")
        assert "Traceback" not in done.stderr
        assert all("trying again" in note for note in notes)
        assert self.outputs() == before
        return line

    def outputs(self) -> dict[str, bytes]:
        folders = (self.root / "data/raw", self.root / "models")
        return {
            str(path.relative_to(self.root)): path.read_bytes() if path.is_file() else b""
            for folder in folders
            for path in folder.rglob("*")
        }

    def rows(self) -> list[dict[str, Any]]:
        return pq.read_table(self.raw / "chat/rows.parquet").to_pylist()

    def records(self) -> list[Any]:
        return [json.loads(row["record"]) for row in self.rows()]

    def about(self, folder: Path) -> dict[str, Any]:
        return json.loads((folder / "source.json").read_text())


class ProjectHere(Project):
    """The same without a process of its own, which saves half a second: for origins whose settings are not
    read once and for all when a library is imported."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(root)
        self.monkeypatch = monkeypatch

    def fetch(
        self, *arguments: str, prelude: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        self.write_params()
        out, err, status = io.StringIO(), io.StringIO(), 0
        with self.monkeypatch.context() as patched, redirect_stdout(out), redirect_stderr(err):
            patched.chdir(self.root)
            for name, value in (self.environment | environment).items():
                patched.setenv(name, value)
            patched.setattr("stages.fetch.retry.FIRST_WAIT", 0.0)
            try:
                main(source=None if "--model" in arguments else arguments[0], model="--model" in arguments)
            except SystemExit as ended:
                status = int(ended.code or 0)
        return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProjectHere:
    return ProjectHere(tmp_path, monkeypatch)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


def jsonl(*values: Any) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()
