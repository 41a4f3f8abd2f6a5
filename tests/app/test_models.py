"""What is served from the workspace or another revision, and what is said of the rest."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from abctune.core.errors import UserError
from abctune.core.params import load_params
from abctune.study.votes import CastVote
from app.__main__ import read_auth
from app.models import find_models, read_adapter
from app.request import read_request, read_sampling
from app.service import Service
from app.votes import record, tally, wilson
from tests.conftest import Workspace

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def copy(project: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(project, tmp_path / "project"))


def damage(folder: Path, how: str) -> None:
    weights = folder / "adapter_model.safetensors"
    if how == "missing folder":
        shutil.rmtree(folder)
    elif how == "cut short":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "empty":
        weights.write_bytes(b"")
    elif how == "no json":
        (folder / "adapter_config.json").write_text("{")
    else:
        (folder / "training.json").write_text('{"base_model": {"origin": "elsewhere"}}')


@pytest.mark.parametrize("how", ["missing folder", "cut short", "empty", "no json", "other base"])
def test_a_broken_adapter_is_named_with_its_remedy_and_the_others_are_served(copy, how):
    damage(copy / "models/B", how)
    (copy / "models/base/source.json").write_text('{"origin": "here"}')
    models = find_models(copy, copy / "models/base", load_params())
    assert models.names == ["base", "A", "C"]
    (problem,) = models.problems
    assert "models/B" in problem and "dvc repro train@B" in problem


@pytest.mark.parametrize("engine", ["llama.cpp", "transformers"])
def test_an_adapter_that_the_engine_cannot_take_is_named_and_the_others_answer(
    copy, tokenizer, engine, tmp_path
):
    from safetensors.numpy import load_file, save_file

    from app.engines.choose import load_engine

    weights = load_file(copy / "models/B/adapter_model.safetensors")
    if engine == "llama.cpp":
        next(iter(weights.values()))[0, 0] = float("nan")
    else:  # of another model's shape
        weights = {key: value.repeat(2, axis=0).repeat(2, axis=1) for key, value in weights.items()}
    save_file(weights, copy / "models/B/adapter_model.safetensors")
    models = find_models(copy, copy / "models/base", load_params())
    served = Service(models, load_engine(engine, models, tokenizer, tmp_path / "cache"), tokenizer)
    assert models.names == ["base", "A", "C"] and "models/B" in models.problems[0]
    sampling = read_sampling(max_new_tokens=3)
    for model, text in (("C", "ccc"), ("base", "zzz")):
        request = read_request(models.names, model, [{"role": "user", "content": "hi"}], sampling)
        *_, replies = served.answer([request])
        assert replies[0].text == text


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_an_adapter_that_is_not_finite_is_served_by_no_engine(copy, dtype):
    import torch
    from safetensors.torch import load_file, save_file

    path = copy / "models/B/adapter_model.safetensors"
    weights = {key: value.to(getattr(torch, dtype)) for key, value in load_file(path).items()}
    save_file(weights, path)
    assert "B" in find_models(copy, copy / "models/base", load_params()).names
    next(iter(weights.values()))[0, 0] = float("inf")
    save_file(weights, path)
    models = find_models(copy, copy / "models/base", load_params())
    assert models.names == ["base", "A", "C"] and "not finite" in models.problems[0]


def test_an_adapter_with_one_flipped_bit_is_not_served(tracked):
    """`dvc commit` writes the hash to dvc.lock, so the test does not trust this code's own idea of it."""
    (tracked.root / "dvc.yaml").write_text(
        "stages:\n  train:\n    foreach: [A, B, C]\n    do: {cmd: 'true', outs: ['models/${item}']}\n"
    )
    for name in "ABC":
        (tracked.root / f"models/{name}.dvc").unlink()
    tracked.git("add", "-A", ".")
    tracked.run("dvc", "commit", "-q", "-f")
    base = tracked.root / "models/base"
    assert find_models(tracked.root, base, load_params()).names == ["base", "A", "B", "C"]
    weights = tracked.root / "models/B/adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 0x20  # an exponent bit of the last number
    weights.write_bytes(data)
    models = find_models(tracked.root, base, load_params())
    assert models.names == ["base", "A", "C"]
    assert (
        "models/B is not what dvc.lock records" in models.problems[0] and "dvc checkout" in models.problems[0]
    )


def test_without_a_base_model_there_is_one_clear_error(tmp_path):
    with pytest.raises(UserError, match="dvc repro fetch-model"):
        find_models(tmp_path, tmp_path / "models/base", load_params())


def test_the_test_loss_stands_beside_the_name(models):
    assert [models.label(name) for name in models.names] == [
        "base · test loss 3.147",
        "A",
        "B · test loss 2.991",
        "C",
    ]


def test_one_variant_can_be_served_alone(project):
    assert find_models(project, project / "models/base", load_params(), only="C").names == ["base", "C"]
    with pytest.raises(UserError, match="no variant 'D'"):
        find_models(project, project / "models/base", load_params(), only="D")


def test_a_changed_adapter_is_another_adapter(copy):
    from safetensors.numpy import load_file, save_file

    before = read_adapter(copy / "models/A", copy / "models/base").sha256
    weights = copy / "models/A/adapter_model.safetensors"
    save_file({key: value + 1 for key, value in load_file(weights).items()}, weights)
    assert read_adapter(copy / "models/A", copy / "models/base").sha256 != before


@pytest.mark.parametrize("text", ["me", ":x", "me:"])
def test_a_password_without_its_user_is_an_error(text):
    with pytest.raises(UserError, match="user:password"):
        read_auth(text)


# --- the command ---


def free_port() -> str:
    """One that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return str(listener.getsockname()[1])


@pytest.fixture
def tracked(copy: Path) -> Workspace:
    """A project whose adapters DVC tracks in one commit, and whose workspace has others."""
    for name in ("abctune", "app", "stages"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "local"))
    project = Workspace(copy)
    project.run("git", "init", "-q", "-b", "main")
    project.run("dvc", "init", "-q")
    project.run("dvc", "add", "-q", *(f"models/{name}" for name in "ABC"))
    project.git("add", "params.yaml", "metrics", "models/A.dvc", "models/B.dvc", "models/C.dvc")
    project.git("commit", "-qm", "first")
    project.git("tag", "first")
    shutil.rmtree(copy / "models/B")
    shutil.copytree(copy / "models/A", copy / "models/B")
    return project


REVISION = """
from pathlib import Path
from app.__main__ import load_service
service = load_service([{rev!r}] if {rev!r} else [], None, "transformers")
from app.request import read_request, read_sampling
request = read_request(service.models.names, "B", [{{"role": "user", "content": "hi"}}], read_sampling(max_new_tokens=4))
*_, replies = service.answer([request])
print("answer", replies[0].text)
"""


def test_a_revision_brings_its_own_adapters_and_leaves_the_workspace_alone(tracked):
    before = (tracked.root / "models/B/adapter_model.safetensors").read_bytes()
    assert "answer bbbb" in tracked.run("python", "-c", REVISION.format(rev="first")).stdout
    assert "answer aaaa" in tracked.run("python", "-c", REVISION.format(rev=None)).stdout
    assert (tracked.root / "models/B/adapter_model.safetensors").read_bytes() == before


TWO = """
from app.__main__ import load_service
from app.request import read_request, read_sampling
service = load_service(["first", "second"], "B", "llama.cpp")
print(service.models.names, [one["commit"][:2] for one in service.models.about()["adapters"].values()])
for name in service.models.names:
    asked = read_request(service.models.names, name, [{"role": "user", "content": "hi"}], read_sampling(max_new_tokens=4))
    *_, replies = service.answer([asked])
    print(name, replies[0].text)
"""


def test_two_revisions_are_served_next_to_each_other(tracked):
    tracked.run("dvc", "add", "-q", "models/B")
    tracked.git("commit", "-qam", "second")
    tracked.git("tag", "second")
    commits = [tracked.git("rev-parse", tag)[:2] for tag in ("first", "second")]
    lines = tracked.run("python", "-c", TWO).stdout.splitlines()
    assert lines == [
        f"{['base', 'B@first', 'B@second']} {commits}",
        "base zzzz",
        "B@first bbbb",
        "B@second aaaa",
    ]


def test_an_experiment_is_a_revision_too(tracked):
    tracked.run("dvc", "add", "-q", "models/B")
    tracked.run("dvc", "exp", "save", "-q", "-n", "other-b")
    tracked.git("checkout", "-q", ".")
    tracked.run("dvc", "checkout", "-q")
    assert "answer bbbb" in tracked.run("python", "-c", REVISION.format(rev=None)).stdout
    assert "answer aaaa" in tracked.run("python", "-c", REVISION.format(rev="other-b")).stdout


def test_a_revision_whose_data_are_gone_or_that_is_none_is_one_line(tracked):
    shutil.rmtree(tracked.root / ".dvc/cache")
    for rev, says in (("first", "dvc push --all-commits"), ("nowhere", "no such Git revision or experiment")):
        done = tracked.run("python", "-m", "app", "--rev", rev, "--port", free_port(), check=False)
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith("error: ") and says in done.stderr


def test_the_command_starts_answers_and_never_connects_elsewhere(copy, tmp_path):
    for name in ("abctune", "app", "stages"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "local"))
    # Python runs a `sitecustomize` it finds at start: any connection that is not to loopback ends the process.
    (copy / "sitecustomize.py").write_text(
        "import os, sys\n"
        "def watch(event, args):\n"
        "    if event == 'socket.connect' and isinstance(args[1], tuple) and args[1][0] not in ('127.0.0.1', '::1'):\n"
        "        sys.stderr.write(f'OUTSIDE {args[1]}\\n'); sys.stderr.flush(); os._exit(9)\n"
        "    if event == 'socket.getaddrinfo' and args[0] not in ('127.0.0.1', 'localhost', None, '::1'):\n"
        "        sys.stderr.write(f'OUTSIDE {args[0]}\\n'); sys.stderr.flush(); os._exit(9)\n"
        "sys.addaudithook(watch)\n"
    )
    project = Workspace(copy)
    import os
    import sys

    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "--port", port],
        cwd=project.root, env=os.environ | {"PYTHONPATH": str(copy)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        line = process.stdout.readline()
        assert re.match(rf"base, A, B, C by llama.cpp, loaded in [\d.]+ s: http://127.0.0.1:{port}", line), (
            process.stderr.read()
        )
        for _ in range(600):
            try:
                assert httpx.get(f"http://127.0.0.1:{port}/").status_code == 200
                break
            except httpx.HTTPError:
                time.sleep(0.1)
        body = {"model": "C", "max_tokens": 3, "messages": [{"role": "user", "content": "hi"}]}
        answer = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body, timeout=60).json()
        assert answer["choices"][0]["message"]["content"] == "ccc"
        second = project.run("python", "-m", "app", "--port", port, check=False)
        assert second.returncode == 1 and "choose another with --port" in second.stderr
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert "OUTSIDE" not in errors


# --- votes ---


def test_only_blind_votes_count_and_a_broken_line_costs_one_vote(tmp_path):
    path = tmp_path / "votes.jsonl"
    for preferred, blind in (("A", True), ("A", True), (None, True), ("B", False)):
        record(path, CastVote(models=("A", "B"), preferred=preferred, blind=blind))
    with path.open("a") as file:
        file.write('{"models": ["A"\n')
    assert [row[:3] for row in tally(path)] == [("A", 2, 3), ("B", 0, 3)]
    assert json.loads(path.read_text().splitlines()[0])["preferred"] == "A"


def test_the_interval_is_wilsons():
    low, high = wilson(7, 10)
    assert (round(low, 4), round(high, 4)) == (0.3968, 0.8922)
    assert wilson(0, 5)[0] == 0 and round(wilson(0, 5)[1], 3) == 0.434


def test_the_record_says_which_bytes_answer_and_by_which_version(models):
    import hashlib

    import abctune

    about = models.about()
    assert about["abctune"] == abctune.__version__
    bytes_of = (models.base / "base.gguf").read_bytes()
    assert about["base"]["sha256"]["base.gguf"] == hashlib.sha256(bytes_of).hexdigest()
    assert about["adapters"]["B"] == {"sha256": models.sha256("B")}
