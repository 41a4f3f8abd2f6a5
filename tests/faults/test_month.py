"""A month of experiments on a very small study, in a folder whose name has a space: what is left at its end is in order."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.faults.test_dvc import start
from tests.workspace import Workspace, make_workspace

pytestmark = pytest.mark.faults
UP_TO_DATE = "Data and pipelines are up to date."
TRAINED = re.compile(r"> python -m stages\.(train|eval)")
PATIENCE = 1800  # seconds in which this process has run, of a busy machine
RUN = ("dvc", "exp", "run")
WEIGHTS = "adapter_model.safetensors"
# What Git ignores and a month leaves: outputs, DVC's cache and notes, bytecode, Unsloth's kernels, this test's log.
EXPLAINED = re.compile(
    r"(data/(general|own-files|raw|mixed|formatted|split)|models|metrics|\.dvc|checkpoints"
    r"|\.compiled)/.*"
    r"|.*__pycache__/|(log|pid)\.tmp|metrics/study\.json"
)
EMPTY_AT_THE_END = ("checkpoints", "data/quarantine")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Workspace:
    """A study of B and C, committed; DVC links files instead of copying them."""
    project = make_workspace(tmp_path_factory.mktemp("month") / "my study", small_model)
    variants = project.params()["variants"]
    project.set(variants={name: variants[name] for name in "BC"}, profiles__tiny__eval__task_prompts=0)
    register(project)
    project.run("dvc", "config", "cache.type", "hardlink,symlink")
    project.run("dvc", "repro")
    project.commit("a study")
    return project


def test_a_month(first: Workspace, tmp_path: Path) -> None:
    experiments(first)
    changes(first)
    others(first, tmp_path / "others")
    tidy(first)


def experiments(project: Workspace) -> None:
    """Twenty-two: one alone, one that adds a variant, a grid, failing, killed in train and in eval, --temp, and a queue stopped and killed."""
    project.run(*RUN, "--name", "single", "--set-param", "variants.B.train.learning_rate=1e-3")
    go_back(project)
    added_variant(project)
    grid(project)

    failed = project.run(*RUN, "--set-param", "variants.B.mix.chat=many", check=False)
    assert failed.returncode and "variants.B.mix.chat" in failed.stdout + failed.stderr
    project.git("checkout", "--quiet", "params.yaml")
    go_back(project)
    for stage, steps in (("train", 5), ("eval", 6)):
        settings = (*RUN, "--name", f"killed-{stage}", "--set-param", f"variants.C.train.max_steps={steps}")
        killed_in(project, stage, *settings)
        project.git(
            "switch", "--quiet", "main"
        )  # DVC had detached HEAD, and was killed before it put it back
        project.run(*settings)  # once more, and it goes on
        go_back(project)
    project.run(*RUN, "--temp", "--name", "aside", "--set-param", "evaluation.margin=0.2")

    project.run(*RUN, "--queue", "--set-param", "evaluation.margin=0.31,0.32,0.33,0.34")
    start_queue(project)
    queue_says("Running", project)
    project.run("dvc", "queue", "stop", "--kill")
    assert "Queued" in queue_says("Worker status: 0 active, 0 idle", project)
    start_queue(project)  # as docs/experiments.md says: what waits goes on
    stuck: list[str] = []
    table = queue_ends(project, stuck)
    assert table.count("Success") >= 14 and table.count("Failed") <= 1 + len(stuck), table
    project.run("dvc", "queue", "remove", "--failed", "--success")
    names = project.run("dvc", "exp", "list", "--name-only").stdout.split()
    assert len(names) >= 19 and {"single", "killed-train", "killed-eval", "aside"} <= set(names)
    project.run("dvc", "exp", "show", "--no-pager")
    assert is_clean(project) and project.git("branch", "--show-current") == "main\n"


def added_variant(project: Workspace) -> None:
    """One that adds a variant: going back removes its outputs, the card that Git does not ignore among them."""
    recipe = re.sub(r'"(\w+)":', r"\1:", json.dumps(project.params()["variants"]["B"]))
    project.run(*RUN, "--name", "added", "--set-param", f"+variants.D={recipe}")
    assert (project.root / "plots/cards/D.md").exists()
    go_back(project)
    assert is_clean(project)
    outputs = (project.root / place for place in ("data", "models", "metrics", "plots"))
    assert [path for place in outputs for path in place.rglob("D*") if path.stem == "D"] == []


def grid(project: Workspace) -> None:
    """Twelve in the queue, edits while they run, which reach none of them."""
    margins = ",".join(f"0.{n:02}" for n in range(1, 13))
    project.run(*RUN, "--queue", "--set-param", f"evaluation.margin={margins}")
    start_queue(project)
    for file, edit in (
        ("tools/watch.py", "\n# an edit\n"),
        ("stages/plot/__main__.py", "\nraise SystemExit('x')\n"),
    ):
        with (project.root / file).open("a") as code:
            code.write(edit)
    stuck: list[str] = []
    table = queue_ends(project, stuck)
    assert table.count("Success") == 12 and not stuck, table
    project.git("checkout", "--quiet", "tools", "stages")


def changes(project: Workspace) -> None:
    """Apply, commit, branch, merge, rename and remove a variant, collect garbage."""
    project.run("dvc", "exp", "apply", "single")
    project.commit("the better rate")
    project.run("dvc", "exp", "branch", "killed-train", "longer")
    project.run("git", "merge", "longer", check=False)
    project.git("checkout", "--ours", "dvc.lock", "plots", "metrics")
    project.git("add", "--all")
    assert not TRAINED.search(project.run("dvc", "repro").stdout)
    project.commit("both")
    variants = project.params()["variants"]
    assert float(variants["B"]["train"]["learning_rate"]) == 1e-3 and variants["C"]["train"]["max_steps"] == 5

    project.set(variants={"E": variants["B"], "C": variants["C"]}, export__variants=["E"])
    register(project)
    assert "train@E" in project.run("dvc", "status").stdout
    project.run("dvc", "repro")
    project.commit("B is E")
    assert (project.root / "models/B").exists()
    assert "B" not in re.findall(r"\w+", (project.root / "metrics/summary.json").read_text())
    assert is_clean(project)

    keep = ("--all-branches", "--all-tags", "--all-experiments")
    project.run("dvc", "gc", "--workspace", *keep, "--force")
    project.run("dvc", "exp", "apply", "killed-eval")  # of B: what an experiment needs is still there
    go_back(project)
    project.tool("prune", "--yes")
    assert is_clean(project) and not (project.root / "models/B").exists()

    project.set(variants={"C": variants["C"]}, export__variants=["C"])
    register(project)
    assert not TRAINED.search(project.run("dvc", "repro").stdout)
    project.commit("without E")
    assert is_clean(project) and (project.root / "models/E").exists()


def others(project: Workspace, folder: Path) -> None:
    """A second clone, a shallow one, a part of the outputs, and a model by its name; with leftovers in the first."""
    origin, store = folder / "origin.git", folder / "store"
    project.git("init", "--quiet", "--bare", "--initial-branch", "main", str(origin))
    project.git("remote", "add", "origin", str(origin))
    project.run("dvc", "remote", "add", "--default", "store", str(store))
    project.commit("where results are shared")
    project.run("dvc", "push")
    project.run("gto", "register", "C", "--version", "v1.0.0")
    project.git("push", "--quiet", "--tags", "origin", "main")
    project.run("dvc", "exp", "push", "origin", "killed-eval")
    for name, links, depth in (("second", "symlink", ()), ("shallow one", "hardlink", ("--depth", "1"))):
        clone = Workspace(folder / name)
        project.git("clone", "--quiet", *depth, f"file://{origin}", str(clone.root))
        clone.run("dvc", "config", "--local", "cache.type", links)
        clone.run("dvc", "pull", "models/C")
        assert (clone.root / "models/C" / WEIGHTS).exists() and not (clone.root / "models/base").exists()
        clone.run("dvc", "pull")
        assert is_clean(clone) and "Running stage" not in clone.run("dvc", "repro").stdout
        assert (clone.root / "models/C" / WEIGHTS).is_symlink() == (links == "symlink")
        assert "left over" not in clone.tool("verify").stdout
        assert is_clean(clone)
    second = Workspace(folder / "second")
    second.run("dvc", "exp", "pull", "origin", "killed-eval")

    weights = (project.root / "models/C" / WEIGHTS).read_bytes()
    importing = Workspace(folder / "another project")
    importing.root.mkdir()
    importing.git("init", "--quiet")
    importing.run("dvc", "init", "--quiet")
    importing.run("dvc", "get", str(origin), "models/C", "--out", "got")
    importing.run("dvc", "import", str(origin), "models/C", "--out", "imported")
    importing.run("dvc", "artifacts", "get", str(origin), "C", "--rev", "v1.0.0", "--out", "by name")
    for name in ("got", "imported", "by name"):
        assert (importing.root / name / WEIGHTS).read_bytes() == weights


def tidy(project: Workspace) -> None:
    """After one `prune`, verify finds nothing and every file is explained."""
    project.tool("prune", "--yes")
    verified = project.tool("verify", check=False)
    assert verified.returncode == 0 and "left over" not in verified.stdout, verified.stdout + verified.stderr
    assert is_clean(project)
    ignored = project.git("-c", "core.quotePath=false", "status", "--porcelain", "--ignored").splitlines()
    names = [line[3:].strip('"') for line in ignored]
    assert [name for name in names if not EXPLAINED.fullmatch(name)] == []
    for name in EMPTY_AT_THE_END:
        folder = project.root / name
        files = [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]
        assert files == [], name
    assert list((project.root / ".dvc/tmp/exps").rglob("tmp*")) == []  # where experiments ran


def register(project: Workspace) -> None:
    """Write the variants of params.yaml, and no others, under `artifacts` in dvc.yaml."""
    path, yaml = project.root / "dvc.yaml", YAML()
    content = yaml.load(path.read_text())
    content["artifacts"] = {
        name: {"path": f"models/{name}", "type": "model"} for name in project.params()["variants"]
    }
    with path.open("w") as file:
        yaml.dump(content, file)


def go_back(project: Workspace) -> None:
    """To the commit, as docs/experiments.md says, without running anything."""
    project.git("checkout", "--quiet", "HEAD", ".")
    project.git("clean", "-fdq", "plots")
    project.run("dvc", "checkout", "--force")


def killed_in(project: Workspace, stage: str, *command: str) -> None:
    """Start a command and kill it, and all that it started, while the stage runs."""
    process = start(project, *command)
    log = project.root / "log.tmp"
    for _ in patiently(0.05):
        if f"> python -m stages.{stage}\n" in log.read_text():
            break
        assert process.poll() is None, log.read_text()
    else:
        raise AssertionError(log.read_text())
    time.sleep(1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    log.unlink()


def start_queue(project: Workspace) -> None:
    """Start the queue's worker, which would keep a pipe to this process open until it ends."""
    assert start(project, "dvc", "queue", "start").wait() == 0


def patiently(pause: float) -> Iterator[None]:
    """Take turns, with a pause after each, for as long as a test has patience.

    Turns are counted, not the clock's seconds: a machine that was paused, tests and all, has lost no time.
    """
    for _ in range(int(PATIENCE / pause)):
        yield
        time.sleep(pause)


def queue_says(pattern: str, project: Workspace) -> str:
    """Wait until a line of the queue's table ends with a match; the table."""
    for _ in patiently(1):
        table = project.run("dvc", "queue", "status").stdout
        if re.search(rf"{pattern}\s*$", table, re.MULTILINE):
            return table
    raise AssertionError(table)


def queue_ends(project: Workspace, stuck: list[str]) -> str:
    """Wait until nothing in the queue waits or runs; its table.

    After `queue stop --kill` two things may happen, and docs/experiments.md has a command for each. The next worker may meet
    the order to stop that was meant for the one before, and end after one experiment: the queue is started once more. And
    the worker that was killed may have taken one more experiment, which DVC then shows as running for ever: it is killed,
    added to `stuck`, and queued again.
    """
    idle = 0
    for _ in patiently(3):
        table = project.run("dvc", "queue", "status").stdout
        if not re.search(r"\b(Queued|Running)\s*$", table, re.MULTILINE):
            return table
        idle = idle + 1 if "Worker status: 0 active, 0 idle" in table else 0
        if idle == 5:
            idle = 0
            for name in re.findall(r"^\w{7} +(\S+) .* Running\s*$", table, re.MULTILINE):
                stuck.append(name)
                project.run("dvc", "queue", "kill", "--force", name)
                margin = f"evaluation.margin=0.4{len(stuck)}"
                project.run(*RUN, "--queue", "--set-param", margin)
            start_queue(project)
    raise AssertionError(table)


def is_clean(project: Workspace) -> bool:
    """Whether neither DVC nor Git has anything to say."""
    return UP_TO_DATE in project.run("dvc", "status").stdout and not project.git("status", "--porcelain")
