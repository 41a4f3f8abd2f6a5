"""A month of experiments on a very small study, in a folder whose name has a space: what is left at its end is in order."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.faults.test_dvc import start
from tests.workspace import Workspace, make_workspace

pytestmark = pytest.mark.faults
UP_TO_DATE = "Data and pipelines are up to date."
PATIENCE = 900  # seconds, of a busy machine
# What Git ignores and a month leaves: environment, caches, DVC's files, outputs, checkpoints, rendered pages.
EXPLAINED = re.compile(
    r"(data|models|metrics|plots|checkpoints|dvc_plots|unsloth_compiled_cache|\.dvc|\.hypothesis)/|.*__pycache__/|log\.tmp"
)


def killed_in(project: Workspace, stage: str, *command: str) -> None:
    """Start a command and kill it, and all that it started, while the stage runs."""
    process = start(project, *command)
    log, until = project.root / "log.tmp", time.monotonic() + PATIENCE
    while f"python -m stages.{stage}" not in log.read_text():
        assert process.poll() is None and time.monotonic() < until, log.read_text()
        time.sleep(0.05)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def queue_ends(project: Workspace) -> str:
    """Wait until nothing in the queue waits or runs; its table."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        table = project.run("dvc", "queue", "status").stdout
        if not re.search(r"\b(Queued|Running)\s*$", table, re.M):
            return table
        time.sleep(3)
    raise AssertionError(table)


def is_clean(project: Workspace) -> bool:
    return UP_TO_DATE in project.run("dvc", "status").stdout and not project.git("status", "--porcelain")


def rename(project: Workspace, old: str, new: str) -> None:
    """Give a variant another name in params.yaml and in the registry of dvc.yaml."""
    for file in ("params.yaml", "dvc.yaml"):
        yaml = YAML()
        content = yaml.load((project.root / file).read_text())
        named = content["variants" if file == "params.yaml" else "artifacts"]
        named.insert(list(named).index(old), new, named.pop(old))
        if file == "dvc.yaml":
            named[new]["path"] = f"models/{new}"
        with (project.root / file).open("w") as out:
            yaml.dump(content, out)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Workspace:
    project = make_workspace(tmp_path_factory.mktemp("month") / "my study", small_model)
    variants = project.params()["variants"]
    project.set(variants={name: variants[name] for name in "BC"}, profiles__tiny__eval__task_prompts=0)
    dvc_yaml = YAML().load((project.root / "dvc.yaml").read_text())
    del dvc_yaml["artifacts"]["A"]
    with (project.root / "dvc.yaml").open("w") as out:
        YAML().dump(dvc_yaml, out)
    project.run("dvc", "config", "cache.type", "hardlink,symlink")
    project.run("dvc", "repro")
    project.commit("a study")
    return project


def test_a_month(first: Workspace, tmp_path: Path) -> None:
    experiments(first)
    changes(first)
    others(first, tmp_path)

    assert first.tool("verify", check=False).stderr == "" and is_clean(first)
    ignored = first.git("status", "--porcelain", "--ignored").splitlines()
    assert [line for line in ignored if not EXPLAINED.fullmatch(line[3:].strip('"') + "")
            and not EXPLAINED.match(line[3:].strip('"'))] == []  # fmt: skip


def experiments(project: Workspace) -> None:
    """Twenty of them: single, in a grid, failing, killed in train and in eval, --temp, and a queue stopped and killed."""
    run = ("dvc", "exp", "run")
    project.run(*run, "--name", "single", "--set-param", "variants.B.train.learning_rate=1e-3")
    margins = ",".join(f"0.{n:02}" for n in range(1, 13))
    project.run("git", "checkout", "--quiet", ".")
    project.run("dvc", "checkout", "--quiet", "--force")
    project.run(*run, "--queue", "--set-param", f"evaluation.margin={margins}")
    project.run("dvc", "queue", "start")
    viewer = project.root / "tools/watch.py"
    viewer.write_text(viewer.read_text() + "\n# an edit while the queue runs\n")
    assert queue_ends(project).count("Success") == 12
    project.git("checkout", "--quiet", "tools")

    failed = project.run(*run, "--set-param", "variants.B.mix.chat=many", check=False)
    assert failed.returncode and "variants.B.mix.chat" in failed.stdout + failed.stderr
    project.git("checkout", "--quiet", "params.yaml")
    for stage, steps in (("train", 5), ("eval", 6)):
        settings = (*run, "--name", f"killed-{stage}", "--set-param", f"variants.B.train.max_steps={steps}")
        killed_in(project, stage, *settings)
        (project.root / "log.tmp").unlink()
        project.run(*settings)  # once more, and it goes on
        project.run("git", "checkout", "--quiet", "--force", ".")
        project.run("dvc", "checkout", "--quiet", "--force")
    project.run(*run, "--temp", "--name", "aside", "--set-param", "evaluation.margin=0.2")

    for n in (31, 32, 33, 34):
        project.run(*run, "--queue", "--set-param", f"evaluation.margin=0.{n}")
    project.run("dvc", "queue", "start")
    project.run("dvc", "queue", "stop", "--kill")
    time.sleep(5)
    project.run("dvc", "queue", "start")  # as docs/experiments.md says: what waits goes on
    queue_ends(project)
    project.run("dvc", "queue", "remove", "--failed", "--success")
    assert len(project.run("dvc", "exp", "list", "--name-only").stdout.split()) >= 19
    assert is_clean(project)


def changes(project: Workspace) -> None:
    """Apply, commit, branch, merge, rename and remove a variant, prune and collect garbage."""
    project.run("dvc", "exp", "apply", "single")
    project.commit("the better rate")
    project.run("dvc", "exp", "branch", "killed-train", "longer")
    rename(project, "B", "E")
    assert "train@E" in project.run("dvc", "status").stdout
    project.run("dvc", "repro")
    project.commit("B is E")
    assert (project.root / "models/B").exists() and "B" not in (
        project.root / "plots/report.md"
    ).read_text().split()
    project.tool("prune", "--yes")
    assert not (project.root / "models/B").exists() and is_clean(project)
    project.run("dvc", "gc", "--workspace", "--all-branches", "--all-tags", "--all-experiments", "--force")
    project.run("dvc", "exp", "apply", "killed-eval")  # what an experiment needs is still there
    project.run("git", "checkout", "--quiet", "--force", ".")
    project.run("git", "clean", "--quiet", "--force", "-d")
    project.run("dvc", "checkout", "--quiet", "--force")
    project.tool("prune", "--yes")
    assert is_clean(project)


def others(project: Workspace, folder: Path) -> None:
    """A second clone, a shallow one, a part of the outputs, and a model by its name."""
    origin, store = folder / "origin.git", folder / "store"
    project.git("init", "--quiet", "--bare", "--initial-branch", "main", str(origin))
    project.git("remote", "add", "origin", str(origin))
    project.run("dvc", "remote", "add", "--default", "store", str(store))
    project.commit("where results are shared")
    project.run("dvc", "push")
    project.git("push", "--quiet", "origin", "main")
    for name, depth in (("second", ()), ("shallow one", ("--depth", "1"))):
        subprocess.run(
            ["git", "clone", "--quiet", *depth, f"file://{origin}", str(folder / name)], check=True
        )
        clone = Workspace(folder / name)
        clone.run("dvc", "pull", "models/E")
        assert (clone.root / "models/E/adapter_model.safetensors").exists()
        assert not (clone.root / "models/C/adapter_model.safetensors").exists()
        clone.run("dvc", "pull")
        assert is_clean(clone) and "Running stage" not in clone.run("dvc", "repro").stdout
    project.run("dvc", "get", str(origin), "models/C", "--out", str(folder / "got"))
    project.run("dvc", "artifacts", "get", str(origin), "E", "--out", str(folder / "by name"))
    for got, model in (("got", "C"), ("by name", "E")):
        same = (project.root / f"models/{model}/adapter_model.safetensors").read_bytes()
        assert (folder / got / "adapter_model.safetensors").read_bytes() == same
