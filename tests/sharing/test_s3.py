"""An S3 bucket as the remote, on moto's server: push, pull of one adapter, and an experiment that travels.

Needs the extra `s3` and moto (`uv pip install --constraint requirements.txt dvc-s3 'moto[server]'`); without them these
tests are skipped.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workspace import Workspace

pytest.importorskip("dvc_s3")
pytest.importorskip("moto")

KEYS = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "us-east-1"}
ADAPTER = "models/B/adapter_model.safetensors"


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of an S3 server with an empty bucket named `team`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(600):
            try:
                request = urllib.request.Request(f"{address}/team", method="PUT")
                urllib.request.urlopen(request, timeout=5).close()
                break
            except urllib.error.URLError:
                time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait()


def test_push_pull_and_an_experiment(study: Workspace, s3: str, tmp_path: Path, monkeypatch) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    study.run("dvc", "remote", "add", "--default", "store", "s3://team/abctune")
    study.run("dvc", "remote", "modify", "store", "endpointurl", s3)
    study.git("commit", "--all", "--quiet", "--message", "Where results are shared")
    study.run("dvc", "push")
    study.git("clone", "--quiet", str(study.root), str(tmp_path / "second"))
    second = Workspace(tmp_path / "second")
    second.run("dvc", "pull", "models/B")
    assert (second.root / ADAPTER).read_bytes() == (study.root / ADAPTER).read_bytes()
    assert not (second.root / "models/A/adapter_model.safetensors").exists()
    second.run("dvc", "pull")
    assert "Data and pipelines are up to date." in second.run("dvc", "status").stdout

    (study.root / "models/B/README.md").write_text("another card\n")
    study.run("dvc", "commit", "--force")
    study.run("dvc", "exp", "save", "--name", "by-s3")
    study.git("init", "--quiet", "--bare", str(tmp_path / "origin.git"))
    study.git("remote", "add", "origin", str(tmp_path / "origin.git"))
    study.git("push", "--quiet", "origin", "main")
    study.run("dvc", "exp", "push", "origin", "by-s3")
    second.git("remote", "set-url", "origin", str(tmp_path / "origin.git"))
    second.run("dvc", "exp", "pull", "origin", "by-s3")
    second.run("dvc", "exp", "apply", "by-s3")
    assert (second.root / "models/B/README.md").read_text() == "another card\n"
