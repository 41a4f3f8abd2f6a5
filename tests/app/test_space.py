"""The folder for a Hugging Face Space or a Docker image: is it whole, and does it start with what it asks for?"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import httpx
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML

from abctune.core.errors import UserError
from app import space


@pytest.fixture(scope="module")
def folder(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = Path(shutil.copytree(project, tmp_path_factory.mktemp("space") / "project"))
    before = Path.cwd()
    os.chdir(root)
    try:
        space.main(root / "out", rev=None, variant=None)
    finally:
        os.chdir(before)
    return root / "out"


def front_matter(folder: Path) -> dict:
    _, head, _ = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return YAML(typ="safe").load(head)


def test_hugging_face_finds_what_it_reads(folder):
    head = front_matter(folder)
    assert head["sdk"] == "gradio" and (folder / head["app_file"]).is_file()
    pins = dict(line.split("==") for line in (folder / "requirements.txt").read_text().split())
    assert pins["gradio"] == head["sdk_version"]
    assert head["python_version"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert head["models"] == [] and head["license"]
    for name in "ABC":
        assert f"| {name} |" in (folder / "README.md").read_text()


def test_no_adapter_is_there_twice_and_a_damaged_one_is_named(folder, tmp_path):
    from abctune.core.params import load_params
    from app.models import find_models

    assert (
        not list(folder.rglob("adapter_model.safetensors")) and len(list(folder.rglob("adapter.gguf"))) == 3
    )
    copy = Path(shutil.copytree(folder, tmp_path / "space"))
    gguf = copy / "models/B/adapter.gguf"
    gguf.write_bytes(gguf.read_bytes()[:-1] + b"x")
    models = find_models(copy, copy / "models/base", load_params())
    assert models.names == ["base", "A", "C"] and "adapter.gguf is missing or damaged" in models.problems[0]


def test_a_model_of_the_hub_is_named(models):
    from abctune.core.params import load_params

    params = load_params()
    full = params.model_copy(update={"profile": "full"})
    text = space.readme(full, models, "0" * 40)
    assert "models:\n  - unsloth/Llama-3.2-3B-Instruct\n" in text and f"Git commit {'0' * 40}" in text


def installed_with(names: tuple[str, ...]) -> set[str]:
    """What pip installs for these packages, all that they need included."""
    found, queue = set(), [canonicalize_name(name) for name in names]
    while queue:
        name = queue.pop()
        if name in found:
            continue
        try:
            needs = [Requirement(line) for line in requires(name) or []]
        except PackageNotFoundError:
            continue
        found.add(name)
        queue += [
            canonicalize_name(one.name)
            for one in needs
            if one.marker is None or one.marker.evaluate({"extra": ""})
        ]
    return found


WITHOUT = """
import importlib.machinery, os, sys
real, absent = importlib.machinery.PathFinder.find_spec, set(os.environ["ABSENT"].split())
def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in absent else real(name, path, target)
importlib.machinery.PathFinder.find_spec = staticmethod(find_spec)
def watch(event, args):
    if event == "socket.connect" and isinstance(args[1], tuple) and args[1][0] not in ("127.0.0.1", "::1"):
        sys.stderr.write(f"OUTSIDE {args[1]}\\n"); sys.stderr.flush(); os._exit(9)
sys.addaudithook(watch)
"""


def test_it_starts_offline_with_nothing_but_its_requirements_and_answers(folder, tmp_path):
    there = installed_with(space.REQUIREMENTS)
    absent = {
        package
        for package, owners in packages_distributions().items()
        if not there & {canonicalize_name(owner) for owner in owners} and not package.startswith("_")
    }
    assert {"torch", "dvc", "gguf", "peft", "unsloth"} <= absent
    copy = Path(shutil.copytree(folder, tmp_path / "space"))
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "run.py", "--host", "127.0.0.1", "--port", str(port)],
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "ABSENT": " ".join(absent)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        body = {"model": "B", "max_tokens": 3, "messages": [{"role": "user", "content": "hi"}]}
        answer = None
        for _ in range(600):
            try:
                url = f"http://127.0.0.1:{port}/v1/chat/completions"
                answer = httpx.post(url, json=body, timeout=120).json()
                break
            except httpx.ConnectError:
                if process.poll() is not None:
                    break
                time.sleep(0.1)
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert answer and answer["choices"][0]["message"]["content"] == "bbb", errors[-2000:]


def test_the_image_is_built_from_files_that_are_there_and_runs_without_rights(folder):
    text = re.sub(r"\\\n", " ", (folder / "Dockerfile").read_text())
    steps = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    for word, rest in steps:
        if word == "COPY":
            *sources, _ = [part for part in rest.split() if not part.startswith("--")]
            for source in sources:
                assert (folder / source).exists(), source
    users = [rest for word, rest in steps if word == "USER"]
    assert users and users[-1] not in ("root", "0")
    assert any("useradd" in rest and users[-1] in rest for word, rest in steps if word == "RUN")
    (command,) = [json.loads(rest) for word, rest in steps if word == "CMD"]
    assert (folder / command[-1]).is_file()


def test_a_base_without_gguf_and_a_folder_that_is_there_are_one_line(project, tmp_path, monkeypatch, capsys):
    root = Path(shutil.copytree(project, tmp_path / "project"))
    monkeypatch.chdir(root)
    (root / "models/base/base.gguf").unlink()
    for out, says in ((root / "out", "needs the base as GGUF"), (root / "models", "is there already")):
        with pytest.raises((UserError, SystemExit)):
            space.main(out, rev=None, variant=None)
        assert says in capsys.readouterr().err
    assert not (root / "out").exists()


def test_an_exported_base_serves_where_the_fetched_one_has_no_gguf(project, tmp_path):
    from app.engines.choose import gguf_of_base

    root = Path(shutil.copytree(project / "models", tmp_path / "models"))
    exported = root / "exported/base/q8_0/base.q8_0.gguf"
    exported.parent.mkdir(parents=True)
    (root / "base/base.gguf").rename(exported)
    assert gguf_of_base(root / "base") == exported
