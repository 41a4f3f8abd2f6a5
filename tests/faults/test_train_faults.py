"""Training that dies, is told to stop, or finds its checkpoints damaged: the adapter is the uninterrupted run's, to the bit.

The recipe saves every 2 steps, logs every 4, evaluates every 6, samples every 5, keeps the best by train loss, and
passes an epoch's end: whatever of that a resumed run would get wrong shows in its adapter, curves or samples.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages.train.checkpoints import find_flaw
from tests import warm
from tests.workspace import Workspace

DRIVER = Path(__file__).parent / "train_driver.py"
STEPS = 14
RECIPE = {
    "per_device_train_batch_size": 6,
    "gradient_accumulation_steps": 1,
    "max_steps": STEPS,  # of 8 steps an epoch
    "learning_rate": 1e-3,
    "warmup_steps": 5,
    "logging_steps": 4,
    "eval_steps": 6,
    "save_steps": 2,  # so that it saves at an epoch's end too
    "sample_every": 5,
    "keep": "train_loss",
}
# One thread each: the driver's forks have one, and how many there are decides the last bits.
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
TRAIN = ("python", "-m", "stages.train", "B")
STEP_LIMIT_S = 300  # generous: other work may use the same cores


class Project(Workspace):
    """A project in which variant B is to be trained."""

    def copy(self, folder: Path) -> Project:
        shutil.copytree(self.root, folder)
        return Project(folder)

    def train(self) -> subprocess.Popen[str]:
        """`python -m stages.train B`, started in a process of its own."""
        return self.start(*TRAIN)

    def train_warm(self) -> subprocess.Popen[str]:
        """The same without the seconds that imports take; the process is one that passes signals on."""
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "start_new_session": True}
        return warm.start(TRAIN, self.root, self.environment(), ENVIRONMENT, **streams)

    def start(self, *command: str) -> subprocess.Popen[str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return subprocess.Popen(
            command,
            cwd=self.root,
            env=os.environ | ENVIRONMENT | {"PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # A background pytest has Ctrl-C ignored, and so would its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def repro(self) -> str:
        return self.run("dvc", "repro", "--single-item", "train@B", **ENVIRONMENT).stderr

    def steps(self) -> list[int]:
        """The checkpoints there are, the oldest first."""
        found = self.root.glob("checkpoints/B/1/*/step-*")
        return sorted(int(path.name.removeprefix("step-")) for path in found)

    def checkpoint(self, step: int) -> Path:
        (found,) = self.root.glob(f"checkpoints/B/1/*/step-{step}")
        return found

    def result(self) -> dict[str, str]:
        """Hashes of all that must not depend on interruptions."""
        curves = [f"plots/metrics/{name}.tsv" for name in ("train/loss", "train/grad_norm", "eval/loss")]
        files = ["models/B/adapter_model.safetensors"]
        files += [f"metrics/train/B/1/{file}" for file in (*curves, "samples.jsonl")]
        return {file: hashlib.sha256((self.root / file).read_bytes()).hexdigest() for file in files}

    def record(self) -> dict:
        """The record of the only replicate."""
        (replicate,) = json.loads((self.root / "models/B/training.json").read_text())["replicates"]
        return replicate


def wait_for(condition, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + STEP_LIMIT_S
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the run does not get there"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def start(tmp_path_factory, split_once) -> Project:
    """The project before its first training; tests copy it."""
    project = Project(tmp_path_factory.mktemp("faults") / "project")
    shutil.copytree(split_once, project.root)
    project.set(variants__B__train=RECIPE)
    of_profile = project.params()["profiles"]["tiny"]["train"]
    project.set(profiles__tiny__train={key: of_profile[key] for key in of_profile.keys() - RECIPE.keys()})
    return project


@pytest.fixture
def project(start, tmp_path) -> Project:
    return start.copy(tmp_path / "project")


class Driver:
    """tests/faults/train_driver.py, asked to train."""

    def __init__(self, folder: Path) -> None:
        code = f"import stages.train, runpy; runpy.run_path({str(DRIVER)!r}, run_name='__main__')"
        self._process = warm.start(
            [sys.executable, "-c", code],
            folder,
            Workspace(folder).environment(),
            ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def train(self, project: Project, **fault) -> dict:
        print(json.dumps({"root": str(project.root)} | fault), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


@pytest.fixture(scope="module")
def driver(start):
    driver = Driver(start.root)
    yield driver
    driver.close()


@pytest.fixture(scope="module")
def uninterrupted(start, driver, tmp_path_factory) -> dict[str, str]:
    """What comes out of a run that nothing interrupts."""
    project = start.copy(tmp_path_factory.mktemp("uninterrupted") / "project")
    answer = driver.train(project, die_in_save=6, die_at=-1)
    assert answer["exit"] == 0, answer["output"]
    assert project.record()["resumed_at"] == [] and project.record()["kept"]["step"] < STEPS
    samples = (project.root / "metrics/train/B/1/samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in samples] == [5, 8, 10, STEPS]
    return {"result": project.result(), "changes": answer["changes"]}


@pytest.fixture(scope="module")
def with_checkpoints(start, driver, tmp_path_factory) -> Project:
    """A project whose run was killed with checkpoints of steps 4 and 6."""
    project = start.copy(tmp_path_factory.mktemp("checkpoints") / "project")
    assert driver.train(project, die_in_save=8, die_at=0)["exit"] == -signal.SIGKILL
    assert project.steps() == [4, 6]
    return project


def kill_at_random(project: Project, seed: int, seconds: float) -> int | None:
    """Kill a run within `seconds` of its having looked for checkpoints; say the step it had saved, None if it was through."""
    process = project.train()
    wait_for(lambda: list(project.root.glob("checkpoints/B/1/*/key.json")), process)
    time.sleep(seconds * random.Random(seed).uniform(0, 0.95))
    process.kill()
    process.communicate()
    return max(project.steps(), default=0) if process.returncode else None


def working_seconds(project: Project) -> float:
    """How long an uninterrupted run takes from looking for checkpoints to its end."""
    process = project.train()
    wait_for(lambda: list(project.root.glob("checkpoints/B/1/*/key.json")), process)
    started = time.monotonic()
    assert process.wait() == 0
    return time.monotonic() - started


def test_a_killed_run_ends_as_if_nothing_had_happened(project, uninterrupted):
    process = project.train_warm()
    wait_for(project.steps, process)
    process.kill()
    process.communicate()
    assert process.returncode and "going on from" in project.repro()
    assert project.result() == uninterrupted["result"]


@pytest.mark.faults
def test_20_runs_killed_at_random_points_end_as_if_nothing_had_happened(start, uninterrupted, tmp_path):
    seconds = working_seconds(start.copy(tmp_path / "timed"))
    same, saved = 0, []
    for seed in range(40):  # more than 20, as some get through before the kill
        project = start.copy(tmp_path / f"kill-{seed}")
        step = kill_at_random(project, seed, seconds)
        if step is not None:
            project.repro()
            saved.append(step)
            same += project.result() == uninterrupted["result"]
        shutil.rmtree(project.root)
        if len(saved) == 20:
            break
    print(
        f"\nkill -9 of train, then dvc repro: {same}/{len(saved)} end with the uninterrupted run's sha256",
        end="; ",
    )
    print(f"newest checkpoints at the kills: steps {', '.join(map(str, sorted(saved)))}")
    assert same == len(saved) == 20


def kill_in_save(start: Project, folder: Path, driver: Driver, cases: range, expected: dict) -> None:
    """Kill the save of step 6 before each of the given changes of a file; then run again."""
    resumed = []
    for place in cases:
        project = start.copy(folder / f"save-{place}")
        assert driver.train(project, die_in_save=6, die_at=place)["exit"] == -signal.SIGKILL
        assert 4 in project.steps() or 6 in project.steps()
        answer = driver.train(project)
        assert answer["exit"] == 0, f"killed before {expected['changes'][place]}:\n{answer['output']}"
        assert project.result() == expected["result"], f"killed before {expected['changes'][place]}"
        resumed.append(*project.record()["resumed_at"])
        shutil.rmtree(project.root)
    print(
        f"\nkill -9 inside a save: {len(resumed)}/{len(cases)} of {len(expected['changes'])} file boundaries",
        end=" ",
    )
    print(f"end with the same sha256; from step 4: {resumed.count(4)}, from step 6: {resumed.count(6)}")
    assert set(resumed) == {4, 6}


def test_a_save_killed_half_way_leaves_the_checkpoint_before_it(start, uninterrupted, driver, tmp_path):
    last = len(uninterrupted["changes"]) - 1
    kill_in_save(start, tmp_path, driver, range(last // 3, last + 1, last - last // 3), uninterrupted)


@pytest.mark.faults
def test_a_save_killed_at_every_file_boundary_leaves_a_checkpoint(start, uninterrupted, driver, tmp_path):
    kill_in_save(start, tmp_path, driver, range(len(uninterrupted["changes"])), uninterrupted)


def test_an_epochs_end_that_a_kill_cut_off_is_made_up_for(project, uninterrupted, driver, tmp_path):
    whole = project.copy(tmp_path / "whole")
    last = len(driver.train(whole, die_in_save=8, die_at=-1)["changes"]) - 1
    assert driver.train(project, die_in_save=8, die_at=last)["exit"] == -signal.SIGKILL
    assert driver.train(project)["exit"] == 0
    assert project.record()["resumed_at"] == [8]
    assert project.result() == uninterrupted["result"]


def test_the_best_adapter_of_before_a_kill_is_the_one_published(project, driver, tmp_path):
    # At this rate the loss of steps 13 to 16 is the lowest: 5.433, and 5.446 of steps 17 to 20.
    project.set(
        variants__B__train=RECIPE | {"learning_rate": 0.05, "max_steps": 20, "per_device_train_batch_size": 2}
    )
    whole = project.copy(tmp_path / "whole")
    found = driver.train(whole)
    assert found["exit"] == 0, found["output"]
    assert driver.train(project, die_in_save=18, die_at=0)["exit"] == -signal.SIGKILL
    assert driver.train(project)["exit"] == 0
    assert project.record()["kept"]["step"] == 16 and project.record()["resumed_at"] == [16]
    assert project.result() == whole.result()


def damage(file: Path, how: str) -> None:
    content = file.read_bytes()
    if how == "truncated":
        os.truncate(file, len(content) // 2)
    elif how == "flipped":
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    else:
        file.unlink()


def test_damage_to_any_file_of_a_checkpoint_is_found_and_named(with_checkpoints, tmp_path):
    sound = with_checkpoints.checkpoint(6)
    files = sorted(path.relative_to(sound) for path in sound.rglob("*") if path.is_file())
    cases = [(file, how) for file in files for how in ("truncated", "flipped", "deleted")]
    for file, how in cases:
        broken = tmp_path / "step-6"
        shutil.copytree(sound, broken)
        damage(broken / file, how)
        flaw = find_flaw(broken)
        # A flip inside the manifest may make it name a file that never was.
        assert flaw and (file.as_posix() in flaw or file.name == "manifest.json"), (file, how, flaw)
        shutil.rmtree(broken)
    assert find_flaw(sound) is None and len(cases) >= 24
    print(f"\ndamaged checkpoint files: {len(cases)}/{len(cases)} found and named ({len(files)} files)")


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    with_checkpoints, uninterrupted, driver, tmp_path
):
    project = with_checkpoints.copy(tmp_path / "project")
    damage(project.checkpoint(6) / "optimizer.pt", "flipped")
    answer = driver.train(project)
    assert "step-6 is damaged (optimizer.pt has other bytes than were written)" in answer["output"]
    assert project.record()["resumed_at"] == [4]
    assert project.result() == uninterrupted["result"]


def test_a_checkpoint_of_other_settings_is_refused_and_said_why(with_checkpoints, driver, tmp_path):
    project = with_checkpoints.copy(tmp_path / "project")
    project.set(lora__r=8, train__save_steps=0)  # how often to save decides nothing
    answer = driver.train(project)
    assert "are not used, training starts from its first step: other params (lora.r)\n" in answer["output"]
    assert project.record()["resumed_at"] == []


def test_a_checkpoint_holds_no_code(with_checkpoints):
    """Weights are safetensors; what is pickled loads with weights_only (numpy's arrays allowed), as the Trainer loads it."""
    import torch
    from transformers.trainer_pt_utils import safe_globals

    files = [path for path in with_checkpoints.checkpoint(6).rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {
        ".json",
        ".jsonl",
        ".tsv",
        ".jinja",
        ".md",
        ".safetensors",
        ".pt",
        ".pth",
    }
    pickled = [path for path in files if path.suffix in (".pt", ".pth")]
    assert {path.name for path in pickled} == {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    for path in pickled:
        with safe_globals():
            torch.load(path, weights_only=True)


def stop(project: Project, number: signal.Signals, process: subprocess.Popen[str]) -> tuple[str, int]:
    """Send a signal to the whole command, as a terminal does, once it has a checkpoint; return what it printed and its exit status."""
    wait_for(project.steps, process)
    os.killpg(process.pid, number)
    return process.communicate(timeout=STEP_LIMIT_S)[0], process.returncode


def check_stopped(
    project: Project, printed: str, status: int, number: signal.Signals, expected: dict
) -> None:
    (step,) = project.steps()[-1:]
    assert status, printed
    assert (
        f"error: stopped by {number.name} after step {step} of {STEPS}; `dvc repro train@B` goes on from there"
        in printed
    )
    assert "Traceback" not in printed and not (project.root / "models/B").exists()
    assert (
        f"going on from checkpoints/B/1/{project.checkpoint(step).parent.name}/step-{step}" in project.repro()
    )
    assert project.record()["resumed_at"] == [step]
    assert project.result() == expected["result"]
    print(
        f"\n{number.name}: stopped after step {step} with a checkpoint of step {step}, then the same sha256"
    )


def test_sigterm_saves_and_the_next_run_loses_no_step(project, uninterrupted):
    printed, status = stop(project, signal.SIGTERM, project.train_warm())
    check_stopped(project, printed, status, signal.SIGTERM, uninterrupted)


@pytest.mark.faults
def test_ctrl_c_on_dvc_repro_saves_and_the_next_run_loses_no_step(project, uninterrupted):
    printed, status = stop(project, signal.SIGINT, project.start("dvc", "repro", "--single-item", "train@B"))
    check_stopped(project, printed, status, signal.SIGINT, uninterrupted)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_that_is_no_number_ends_the_run_before_it_reaches_the_adapter(what, project, driver):
    from safetensors.torch import load_file

    answer = driver.train(project, spoil=what, spoil_at=8)
    said = {"loss": "loss is nan", "gradient": "a gradient is infinite or nan"}[what]
    assert answer["exit"] == 1 and f"\nerror: {said} at step 8; nothing is published" in answer["output"]
    assert project.steps() == [4, 6] and not (project.root / "models/B").exists()
    adapter = load_file(project.root / "checkpoints/B/last_finite/adapter_model.safetensors")
    assert all(weights.isfinite().all() for weights in adapter.values())
    assert any(weights.abs().sum() for name, weights in adapter.items() if "lora_B" in name)


@pytest.mark.faults
def test_of_two_runs_at_once_one_wins_and_the_other_says_so(project, uninterrupted):
    winner = project.train()
    wait_for((project.root / "checkpoints/B/lock").exists, winner)
    started = time.monotonic()
    loser = project.train()
    printed, _ = loser.communicate(timeout=STEP_LIMIT_S)
    seconds = time.monotonic() - started
    assert loser.returncode == 1
    assert (
        f"error: B is being trained here by process {winner.pid}, which holds checkpoints/B/lock" in printed
    )
    assert winner.wait() == 0 and project.result() == uninterrupted["result"]
    print(f"\ntwo runs at once: one wins, the other leaves after {seconds:.1f} s")


def test_a_run_that_is_through_leaves_nothing_to_resume(project, driver, uninterrupted):
    """Otherwise `dvc repro --force` would train the last steps only."""
    for _ in range(2):
        assert driver.train(project)["exit"] == 0
        assert project.record()["resumed_at"] == []
        assert [path.name for path in (project.root / "checkpoints/B").iterdir()] == ["lock"]
    assert project.result() == uninterrupted["result"]


@pytest.mark.parametrize("kib", [300, 700, 900])
def test_a_full_disk_is_one_line_and_leaves_the_checkpoint_before(kib, project, driver, uninterrupted):
    """The first save, a later one and one of the Trainer's own files do not fit (one checkpoint takes about 380 KiB)."""
    place = project.root / "checkpoints"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", place], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"a small disk needs the right to mount one: {mounted.stderr.decode().strip()}")
    try:
        answer = driver.train(project)
        before = project.steps()
        assert answer["exit"] == 1 and not (project.root / "models/B").exists()
        assert "\nerror: no space left on the disk while writing checkpoints/B/" in answer["output"]
        assert "Traceback" not in answer["output"]
        assert all(find_flaw(project.checkpoint(step)) is None for step in before)
        subprocess.run(["mount", "-o", "remount,size=4m", place], check=True)
        assert driver.train(project)["exit"] == 0
        assert project.record()["resumed_at"] == before[-1:]
        assert project.result() == uninterrupted["result"]
    finally:
        subprocess.run(["umount", place], check=True)
