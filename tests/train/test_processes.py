"""Several processes train what one does: the same adapter, written once; and one that dies ends them all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from stages.train.micro_batching import share
from tests.conftest import made_once
from tests.train.started import has_checkpoint, started
from tests.workspace import Workspace

STEPS = 6
RECIPE = {
    "variants__B__train__max_steps": STEPS,
    "variants__B__train__warmup_steps": 2,
    "variants__B__train__logging_steps": 1,
    "profiles__tiny__train__per_device_train_batch_size": 3,  # x 2 = 6 a step, which 4 processes cannot share evenly
    "profiles__tiny__train__gradient_accumulation_steps": 2,
}
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


@pytest.fixture
def project(ready_to_train):
    ready_to_train.set(**RECIPE)
    return ready_to_train


@pytest.fixture(scope="module")
def alone(tmp_path_factory, split_once):
    """Variant B trained by one process, once for all files that compare with it."""

    def make(folder):
        shutil.copytree(split_once, folder)
        project = Workspace(folder)
        project.set(**RECIPE)
        project.stage("train", "B")

    return Workspace(made_once(tmp_path_factory, "alone", make))


def largest_difference(one, other):
    """The largest distance between the two adapters' tensors, as a share of the tensor's norm."""
    first, second = (load_file(p.root / "models/B/adapter_model.safetensors") for p in (one, other))
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).norm() / first[name].norm()) for name in first)


def curve(project, name):
    lines = (project.root / f"metrics/train/B/1/plots/metrics/{name}.tsv").read_text().splitlines()[1:]
    return [float(line.split("\t")[1]) for line in lines]


def require_same_run(alone, project, processes):
    assert largest_difference(alone, project) < 1e-5
    for name in ("train/loss", "eval/loss", "train/grad_norm"):
        assert curve(project, name) == pytest.approx(curve(alone, name), rel=1e-5)
    record = json.loads((project.root / "models/B/training.json").read_text())
    assert record["processes"] == processes
    files = [
        {path.relative_to(p.root).as_posix() for path in p.root.glob("m[eo]*/**/*")} for p in (alone, project)
    ]
    assert files[0] == files[1]


def errors(done):
    return [line for line in done.stderr.replace("\r", "\n").splitlines() if line.startswith("error:")]


@given(st.lists(st.integers(1, 2048), min_size=8, max_size=40), st.integers(1, 8))
def test_every_conversation_has_one_process_and_their_tokens_are_about_even(lengths, world):
    shares = [share(range(len(lengths)), lengths, rank, world) for rank in range(world)]
    assert sorted(index for share in shares for index in share) == list(range(len(lengths)))
    assert all(share and share == sorted(share) for share in shares)
    tokens = [sum(lengths[index] for index in share) for share in shares]
    assert max(tokens) - min(tokens) <= max(lengths)


def test_two_processes_train_the_adapter_of_one(alone, project):
    project.stage("train", "B", PET_NPROC_PER_NODE="2", **ONE_THREAD)
    require_same_run(alone, project, 2)


@pytest.mark.faults
@pytest.mark.parametrize(
    "launcher",
    [
        # Without a GPU, `accelerate launch` starts several processes only where it is told to think of several GPUs.
        ["accelerate", "launch", "--multi_gpu", "--num_processes", "2"],
        ["torchrun", "--standalone", "--nproc_per_node", "2"],
    ],
)
def test_the_launchers_that_people_know_train_the_adapter_of_one(alone, project, launcher):
    project.run(*launcher, "-m", "stages.train", "B", **ONE_THREAD)
    require_same_run(alone, project, 2)


@pytest.mark.faults
def test_four_processes_with_uneven_shares_train_the_adapter_of_one(alone, project):
    project.stage("train", "B", PET_NPROC_PER_NODE="4", **ONE_THREAD)
    require_same_run(alone, project, 4)


def test_more_processes_than_conversations_a_step_are_refused_in_one_line(ready_to_train):
    done = ready_to_train.stage("train", "B", check=False, PET_NPROC_PER_NODE="2")
    assert done.returncode == 1
    assert errors(done) == [
        "error: 2 processes, but a step of B has 1 conversations (per_device_train_batch_size x "
        "gradient_accumulation_steps in params.yaml); start fewer processes"
    ]


@pytest.mark.faults
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_stage_in_one_line_and_the_rerun_goes_on(alone, project, rank):
    project.set(train__save_steps=2)
    launcher = started(project, has_checkpoint(project, 2), True, PET_NPROC_PER_NODE="2", **ONE_THREAD)
    os.kill(process_of(launcher.pid, rank), signal.SIGKILL)
    launcher.stderr, said = None, launcher.communicate(timeout=60)[1]
    line = f"error: process {rank} of B's training was killed by SIGKILL; the others were ended too. "
    assert launcher.returncode == 1
    assert [text for text in said.splitlines() if text.startswith("error:")] == [
        line + "`dvc repro train@B` goes on from the last checkpoint"
    ]
    assert not (project.root / "models/B").exists()
    done = project.stage("train", "B", PET_NPROC_PER_NODE="2", **ONE_THREAD)
    assert "going on from checkpoints/B/" in done.stderr
    require_same_run(alone, project, 2)


def process_of(launcher: int, rank: int) -> int:
    """The process id of a rank among torchrun's children."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if int(parent) == launcher and f"RANK={rank}".encode() in environment:
            return int(folder.name)
    raise AssertionError(f"no process of rank {rank}")


@contextmanager
def two_machines():
    """Two network namespaces joined by a cable, each as the words that run a command in it."""

    def ip(*words):
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)

    names = [f"abctune{os.getpid()}{side}" for side in "ab"]
    with ExitStack() as undo:
        try:
            for name in names:
                ip("netns", "add", name)
                undo.callback(ip, "netns", "del", name)
            ip("link", "add", "abc0", "netns", names[0], "type", "veth", "peer", "abc0", "netns", names[1])
            for number, name in enumerate(names, 1):
                ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "abc0")
                for device in ("lo", "abc0"):
                    ip("-n", name, "link", "set", device, "up")
        except (OSError, subprocess.CalledProcessError) as refused:
            pytest.skip(f"no network namespaces here: {getattr(refused, 'stderr', None) or refused}")
        yield [["ip", "netns", "exec", name] for name in names]


def together(machines, processes_each):
    """Start the stage on each of the machines (words before the command, folder, environment); wait for all."""
    shared = {
        "PET_NNODES": str(len(machines)),
        "PET_NPROC_PER_NODE": str(processes_each),
        "PET_MASTER_PORT": "29517",
    }
    running = [
        subprocess.Popen(
            [*words, sys.executable, "-m", "stages.train", "B"],
            cwd=folder,
            env=os.environ | ONE_THREAD | shared | {"PET_NODE_RANK": str(number)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, (words, folder, environment) in enumerate(machines)
    ]
    said = [process.communicate(timeout=300) for process in running]
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *texts)
        for process, texts in zip(running, said, strict=True)
    ]


@pytest.mark.faults
def test_two_machines_train_the_adapter_of_one_and_the_second_writes_nothing(
    alone, project, tmp_path_factory
):
    second = tmp_path_factory.mktemp("second")
    shutil.copytree(project.root, second, dirs_exist_ok=True)
    before = sorted(second.glob("m[eo]*/**/*"))
    with two_machines() as machines:
        done = together(
            [
                (machine, folder, {"PET_MASTER_ADDR": "10.77.0.1", "GLOO_SOCKET_IFNAME": "abc0"})
                for machine, folder in zip(machines, (project.root, second), strict=True)
            ],
            processes_each=2,
        )
    assert [one.returncode for one in done] == [0, 0], done
    require_same_run(alone, project, 4)
    assert sorted(second.glob("m[eo]*/**/*")) == before


@pytest.mark.faults
def test_a_machine_that_would_train_something_else_is_refused_by_what_differs(project, tmp_path_factory):
    second = tmp_path_factory.mktemp("second")
    shutil.copytree(project.root, second, dirs_exist_ok=True)
    Workspace(second).set(seed=1)
    done = together([([], folder, {"PET_MASTER_ADDR": "127.0.0.1"}) for folder in (project.root, second)], 1)
    assert [one.returncode for one in done] == [1, 1]
    assert errors(done[0]) == [
        "error: process 1 cannot train: its machine has other params (seed) than the first one's"
    ]
    assert not (project.root / "models/B").exists()
