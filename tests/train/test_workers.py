"""Replicates that train at the same time: the same bytes as one after the other, and nothing left of a stopped run."""

import signal
import subprocess
from collections.abc import Callable
from types import SimpleNamespace

import psutil
import pytest

from stages.train import workers
from tests.train.started import has_checkpoint, started
from tests.train.test_replicates import adapters, record

TWO_THREADS = {"OMP_NUM_THREADS": "2"}


@pytest.mark.parametrize(("free_gib", "at_once"), [(64, 3), (8, 2), (4, 1)])
def test_as_many_train_at_once_as_end_soonest_and_fit(monkeypatch, free_gib, at_once):
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    monkeypatch.setattr(workers, "weight_bytes", lambda *_, **__: 2**29)
    monkeypatch.setattr(workers.psutil, "virtual_memory", lambda: SimpleNamespace(available=free_gib * 2**30))
    assert workers.workers_for(SimpleNamespace(replicates=(1, 2, 3))) == at_once


def two_at_once(
    project, ready: Callable[[], object], steps: int, own_process: bool = False
) -> subprocess.Popen[str]:
    """The stage, training two replicates of B at the same time, as soon as it is `ready`."""
    project.set(profiles__tiny__replicates=2, train__save_steps=1)
    project.set(variants__B__train__max_steps=steps, variants__B__train__eval_steps=20)
    return started(project, ready, own_process, **TWO_THREADS)


def test_stopped_they_go_on_and_end_with_the_bytes_of_one_after_the_other(ready_to_train):
    # Whether the other one trains, still imports or has finished, when one has a checkpoint: it stops or waits.
    process = two_at_once(ready_to_train, has_checkpoint(ready_to_train, "*", replicate="*"), steps=60)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    last = errors.rstrip().splitlines()[-1]
    assert last.startswith("error: stopped by SIGTERM after step") and "`dvc repro train@B` goes on" in last
    they_go_on(ready_to_train)


@pytest.mark.faults
def test_killed_in_the_second_replicate_they_go_on_and_end_with_the_same_bytes(ready_to_train):
    process = two_at_once(ready_to_train, has_checkpoint(ready_to_train, "*", replicate=2), steps=60)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=120)
    they_go_on(ready_to_train)


def they_go_on(ready_to_train) -> None:
    """Run the stage again, which resumes, and once more from the start with one replicate after the other."""
    ready_to_train.set(train__save_steps=0)
    printed = ready_to_train.stage("train", "B", **TWO_THREADS)
    assert "going on from checkpoints/B/" in printed.stderr
    assert any(entry["resumed_at"] for entry in record(ready_to_train)["replicates"])
    assert [path.name for path in (ready_to_train.root / "checkpoints/B").iterdir()] == ["lock"]

    at_once = adapters(ready_to_train)
    ready_to_train.stage("train", "B", OMP_NUM_THREADS="1")
    assert adapters(ready_to_train) == at_once


@pytest.mark.faults
@pytest.mark.parametrize("which", ["a worker", "the stage"])
def test_a_killed_process_takes_the_others_along(ready_to_train, which):
    first, second = (has_checkpoint(ready_to_train, "*", number) for number in (1, 2))
    process = two_at_once(ready_to_train, lambda: first() and second(), steps=1000, own_process=True)
    family = psutil.Process(process.pid).children(recursive=True)
    workers = [one for one in family if "resource_tracker" not in " ".join(one.cmdline())]
    assert len(workers) == 2
    (workers[0] if which == "a worker" else process).send_signal(signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    if which == "a worker":
        assert process.returncode == 1
        assert "was killed, perhaps for want of memory; `dvc repro train@B` goes on" in errors
    _gone, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive
