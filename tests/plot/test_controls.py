"""The commands of docs/controls.md are ones that DVC takes and params.yaml allows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from abctune.core.params import load_params
from tests.workspace import make_workspace

COMMANDS = re.findall(r"^dvc exp run .*$", Path("docs/controls.md").read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def committed(tmp_path_factory, small_model):
    """A project, for experiments to be queued in; none of them is run."""
    project = make_workspace(tmp_path_factory.mktemp("controls"), small_model)
    project.set(profiles__tiny__model__chat_template="model")
    project.commit("the key that dvc.yaml names")
    return project


@pytest.mark.parametrize("command", COMMANDS)
def test_a_documented_command_queues_experiments_with_valid_params(committed, command):
    committed.git("checkout", "-q", "HEAD", "--", "params.yaml")
    queued = shlex.split(command)
    if "--queue" not in queued:
        queued.insert(3, "--queue")
    done = committed.run(*queued)
    values = re.search(r"-S '?[\w.]+=([\d,]+)'?$", command)
    expected = len(values[1].split(",")) if values else 1
    assert (done.stdout + done.stderr).count("Queued experiment") == expected
    committed.git("checkout", "-q", "refs/exps/celery/stash", "--", "params.yaml")
    params = load_params(committed.root / "params.yaml")
    if "+variants.D" in command:
        b, d = load_params().train_of("B", "full"), params.train_of("D", "full")  # the repository's B
        assert {key for key in type(b).model_fields if getattr(b, key) != getattr(d, key)} == {"warmup_steps"}
        assert d.warmup_steps == 5 and params.variants["D"].mix == {"chat": 15_000}
    elif "seed" in command:
        assert params.seed in (1, 2, 3)


def test_there_are_commands_for_a_control_and_for_seeds():
    assert any("+variants.D" in command for command in COMMANDS)
    assert any("--queue -S seed=1,2,3" in command for command in COMMANDS)
