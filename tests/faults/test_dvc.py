"""DVC and the stages under it: killed at any moment, or started twice."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from ruamel.yaml import YAML

from tests import warm
from tests.warm_client import PID_FILE
from tests.workspace import Workspace, make_workspace

STAGES = ("own-data", "own-model", "fetch-model", "fetch@chat", "fetch@instruct", "mix@C", "format@C", "split@C", "train@C", "eval-base", "eval@C", "plot")  # fmt: skip
KILLS = 5
PID = "pid.tmp"
MOMENTARY = ("own-data", "own-model")  # over before they can be killed
# What differs between two runs of the same: times and memory, and what is drawn or written from them.
MEASURED = re.compile(r"seconds|tokens_per_second|peak_\w*gib|\bresources\b|timestamp|resumed")


def make_project(folder: Path, small_model: Path) -> Workspace:
    """A project of one variant, in which each stage runs once."""
    project = make_workspace(folder, small_model)
    project.set(variants={"C": project.params()["variants"]["C"]}, export__variants=["C"])
    project.commit("C alone")
    return project


def start(project: Workspace, *command: str) -> subprocess.Popen[str]:
    """Start a command, its output in `log.tmp`; what is returned may be one that passes signals on (tests/warm.py)."""
    (project.root / PID).unlink(missing_ok=True)
    environment = warm.with_program(project.environment()) | {PID_FILE: str(project.root / PID)}
    with (project.root / "log.tmp").open("w") as log:
        return warm.start(
            command, project.root, project.environment(), environment, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip


def pid_of(project: Workspace, process: subprocess.Popen[str]) -> int:
    """The process and process group of a command itself, once it has started a stage."""
    return int((project.root / PID).read_text()) if warm.is_on() else process.pid


def started(project: Workspace, process: subprocess.Popen[str], patience: float = 60) -> bool:
    """Wait until DVC has started a stage; whether it has."""
    until = time.monotonic() + patience
    while process.poll() is None and time.monotonic() < until:
        if "\n> " in (project.root / "log.tmp").read_text():
            return True
        time.sleep(0.01)
    return False


def seconds_of(project: Workspace, stage: str) -> float:
    """Run a stage to its end; how long its command took."""
    process = start(project, "dvc", "repro", "--single-item", stage)
    assert started(project, process), (project.root / "log.tmp").read_text()
    began = time.monotonic()
    assert process.wait() == 0, (project.root / "log.tmp").read_text()
    return time.monotonic() - began


def kill_some(project: Workspace, stage: str, seconds: float, kills: int, rng: random.Random) -> int:
    """Kill a stage, with DVC or (every second time) without, at random moments of its command; how many times."""
    killed = 0
    for attempt in range(8 * kills):
        running: list[psutil.Process] = []
        process = start(project, "dvc", "repro", "--single-item", "--force", stage)
        if started(project, process):
            time.sleep(rng.uniform(0, seconds))
        if process.poll() is None:
            dvc = pid_of(project, process)
            send(dvc, signal.SIGSTOP)
            # Not while DVC writes dvc.lock: it does so in place, and half a dvc.lock has to be restored by hand.
            running = command_of(dvc)
            killed += bool(running)
            if attempt % 2:
                for child in running:
                    child.kill()
            elif running:
                send(dvc, signal.SIGKILL)
            send(dvc, signal.SIGCONT)
            assert bool(process.wait()) == bool(running)
            psutil.wait_procs(
                running, timeout=60
            )  # until someone has reaped them, their process ids are alive
        if not running:
            seconds /= 2  # it had ended: it takes less time than when it was measured
        if killed == kills:
            break
    return killed


def send(group: int, number: signal.Signals) -> None:
    """Send a signal to a process group that may have ended."""
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def command_of(pid: int) -> list[psutil.Process]:
    """The processes of the stage that DVC runs, if its command has not ended."""
    try:
        children = psutil.Process(pid).children(recursive=True)
        return [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
    except psutil.NoSuchProcess:
        return []


def lock(project: Workspace) -> dict:
    return YAML(typ="safe").load((project.root / "dvc.lock").read_text())["stages"]


def comparable(stages: dict) -> dict:
    """dvc.lock without the hashes of outputs that hold times: their contents are compared instead."""
    timed = re.compile(r"^(models/C|metrics/.*|plots)$")
    for stage in stages.values():
        for path in [*stage.get("deps", []), *stage.get("outs", [])]:
            if timed.match(path["path"]):
                for key in ("md5", "size"):
                    path.pop(key, None)
    return stages


def without_times(value: object) -> object:
    if isinstance(value, dict):
        return {key: without_times(one) for key, one in value.items() if not MEASURED.search(key)}
    return [without_times(one) for one in value] if isinstance(value, list) else value


def results(project: Workspace) -> dict[str, object]:
    """The outputs that hold times, without the times."""
    found: dict[str, object] = {}
    for room in ("models/C", "metrics"):
        for path in sorted((project.root / room).rglob("*")):
            name = str(path.relative_to(project.root))
            if path.name == "adapter_config.json":  # PEFT writes a set, in an order of that process's own
                value = json.loads(path.read_text())
                found[name] = value | {"target_modules": sorted(value["target_modules"])}
            elif path.suffix == ".json":
                found[name] = without_times(json.loads(path.read_text()))
            elif path.suffix in (".safetensors", ".parquet", ".jsonl"):
                found[name] = path.read_bytes()
    return found


def half_written(project: Workspace) -> list[Path]:
    """What killed processes left."""
    return [
        path
        for path in project.root.rglob("*.tmp")
        if ".dvc" not in path.parts and path.name not in ("log.tmp", PID)
    ]


def check_kills(project: Workspace, clean: Workspace, stages: tuple[str, ...], kills: int) -> None:
    rng, total = random.Random(0), 0
    for stage in stages:
        seconds = seconds_of(clean, stage)
        if stage in MOMENTARY:
            project.run("dvc", "repro", "--single-item", stage)
            continue
        killed = kill_some(project, stage, seconds, kills, rng)
        assert killed == kills, f"{stage} was killed {killed} times of {kills}"
        project.run("dvc", "repro", "--single-item", stage)
        total += killed
        print(f"\nkill -9 in {stage}: {killed} of {kills}, then dvc repro completed", end="", flush=True)
    assert lock(project).keys() == lock(clean).keys() == set(stages)
    assert comparable(lock(project)) == comparable(lock(clean))
    assert results(project) == results(clean)
    # DVC may have taken a stage's output from its run cache. Then the next run of its command tidies up.
    for stage in stages:
        if half_written(project):
            project.run("dvc", "repro", "--single-item", "--force", stage)
    assert half_written(project) == []
    print(f"\nkill -9 in DVC stages: {total} of {total}; dvc.lock as a clean run's")


@pytest.fixture
def two_projects(tmp_path: Path, small_model: Path) -> tuple[Workspace, Workspace]:
    """The same project twice."""
    make_project(tmp_path / "killed", small_model)
    shutil.copytree(tmp_path / "killed", tmp_path / "clean")
    return Workspace(tmp_path / "killed"), Workspace(tmp_path / "clean")


def test_a_killed_stage_is_made_good_by_the_next_dvc_repro(two_projects: tuple[Workspace, Workspace]) -> None:
    check_kills(*two_projects, STAGES[:7], kills=1)


@pytest.mark.faults
def test_every_stage_may_be_killed_five_times(two_projects: tuple[Workspace, Workspace]) -> None:
    check_kills(*two_projects, STAGES, KILLS)
    project, _ = two_projects
    assert "Running stage" not in project.run("dvc", "repro").stdout


def test_of_two_runs_at_once_one_wins_and_the_other_says_why(tmp_path: Path, small_model: Path) -> None:
    project = make_project(tmp_path, small_model)
    for stage in STAGES[:5]:
        project.run("dvc", "repro", "--single-item", stage)
    first = start(project, "dvc", "repro", "mix@C")
    assert started(project, first)
    pid = pid_of(project, first)
    try:
        os.killpg(pid, signal.SIGSTOP)  # so that it is still at it, however slow this machine is
        began = time.monotonic()
        second = project.run("dvc", "repro", "mix@C", check=False)
        seconds = time.monotonic() - began
    finally:
        os.killpg(pid, signal.SIGCONT)
    assert second.returncode
    assert f"is busy, it is being blocked by:\n  (PID {pid}): " in second.stderr
    assert first.wait(timeout=60) == 0
    assert (project.root / "data/mixed/C.parquet").exists()
    print(f"\ntwo runs at once: one finished, the other said who blocks it after {seconds:.1f} s")
    assert seconds < 60  # 1 s on an idle machine
