"""cloud/sky.yaml: the keys that SkyPilot's schema knows, and what its commands do, in which order."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
# Of SkyPilot 0.14's task schema, by which the file was checked whole (docs/scale.md).
KEYS = {
    "name",
    "resources",
    "num_nodes",
    "workdir",
    "envs",
    "secrets",
    "setup",
    "run",
    "file_mounts",
    "config",
}


@pytest.fixture
def task():
    return YAML(typ="safe").load((ROOT / "cloud/sky.yaml").read_text())


def run(task, tmp_path, experiment_exit):
    """Run the task's `run` with a dvc that writes down its arguments; return exit status and those."""
    dvc = tmp_path / ".venv/bin/dvc"
    dvc.parent.mkdir(parents=True)
    dvc.write_text(
        f'#!/bin/sh\necho "$PET_NPROC_PER_NODE: $*" >> {tmp_path}/calls\n[ "$1" != exp ] || exit {experiment_exit}\n'
    )
    dvc.chmod(0o755)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    environment = os.environ | task["envs"] | {"SKYPILOT_NUM_GPUS_PER_NODE": "4"}
    done = subprocess.run(["bash", "-c", task["run"]], cwd=tmp_path, env=environment)
    return done.returncode, (tmp_path / "calls").read_text().splitlines()


@pytest.mark.parametrize("status", [0, 1])
def test_it_pulls_runs_on_all_gpus_and_pushes_even_after_a_failure(task, tmp_path, status):
    assert run(task, tmp_path, status) == (
        status,
        [
            "4: pull --run-cache --allow-missing",
            "4: exp run --name rented --set-param profile=full",
            "4: push --run-cache",
        ],
    )


def test_its_keys_profile_and_make_target_exist(task):
    assert set(task) <= KEYS
    assert task["envs"]["PROFILE"] in YAML(typ="safe").load((ROOT / "params.yaml").read_text())["profiles"]
    target = next(word for word in task["setup"].split() if word.endswith(".installed"))
    subprocess.run(["make", "--dry-run", "--always-make", target], cwd=ROOT, check=True, capture_output=True)
    for part in ("setup", "run"):
        assert subprocess.run(["bash", "-n"], input=task[part], text=True).returncode == 0
