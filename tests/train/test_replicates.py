"""Replicates: a variant's adapters that differ in the training seed, one of which is published."""

import hashlib
import json
import shutil
import signal
import sys

import pytest

from tests.train.started import has_checkpoint, started
from tests.workspace import Workspace

CURVES = ("train/loss", "train/grad_norm", "eval/loss")


def adapters(project: Workspace) -> dict[str, str]:
    """SHA-256 of every adapter of B and of every replicate's curves."""
    files = [*project.root.glob("models/replicates/B/*/adapter_model.safetensors")]
    files += [*project.root.glob("models/B/adapter_model.safetensors")]
    for name in CURVES:
        files += project.root.glob(f"metrics/train/B/*/plots/metrics/{name}.tsv")
    return {
        file.relative_to(project.root).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
    }


def record(project: Workspace) -> dict:
    return json.loads((project.root / "metrics/train/B/training.json").read_text())


@pytest.fixture(scope="module")
def twice(tmp_path_factory, split_once) -> Workspace:
    """Variant B trained with two replicates."""
    folder = tmp_path_factory.mktemp("twice")
    shutil.copytree(split_once, folder, dirs_exist_ok=True)
    project = Workspace(folder)
    project.set(profiles__tiny__replicates=2, train__save_steps=1)
    project.stage("train", "B")
    return project


def test_the_first_of_two_replicates_is_the_run_with_one_to_the_byte(twice, ready_to_train):
    ready_to_train.stage("train", "B")
    alone, both = adapters(ready_to_train), adapters(twice)
    assert alone.items() <= both.items()
    assert (
        both["models/B/adapter_model.safetensors"] == both["models/replicates/B/1/adapter_model.safetensors"]
    )


def test_the_second_is_what_a_run_alone_with_its_seed_and_its_order_of_rows_would_be(twice, ready_to_train):
    # The base is loaded once for both: nothing of the first may be left in it.
    code = (
        "import sys; sys.argv[1:] = ['B'];"
        "import stages.train.recipe as recipe; found = recipe.resolve;"
        "from dataclasses import replace;"
        "import stages.train.__main__ as stage;"
        "stage.resolve = lambda *a: (lambda run: replace(run, replicates=run.replicates[1:]))(found(*a));"
        "stage.main('B')"
    )
    ready_to_train.set(profiles__tiny__replicates=2)
    ready_to_train.run(sys.executable, "-c", code)
    name = "models/replicates/B/2/adapter_model.safetensors"
    assert adapters(ready_to_train)[name] == adapters(twice)[name]


def test_replicates_differ_and_each_has_a_record_of_its_own(twice):
    found, one = adapters(twice), record(twice)
    assert len({found[f"models/replicates/B/{r}/adapter_model.safetensors"] for r in (1, 2)}) == 2
    assert [entry["replicate"] for entry in one["replicates"]] == [1, 2] and one["published"] == 1
    assert one["replicates"][0]["seed"] == 3407 != one["replicates"][1]["seed"]
    assert all(entry["resources"]["seconds"] > 0 for entry in one["replicates"])
    # Nothing is chosen by the loss on validation rows, so one curve of it is enough.
    assert [entry["final"]["eval_loss"] is None for entry in one["replicates"]] == [False, True]
    assert len(list(twice.root.glob("metrics/train/B/*/plots/metrics/train/loss.tsv"))) == 2
    # Samples show the style once; a generation per replicate would cost more than it shows.
    assert [path.parent.name for path in twice.root.glob("metrics/train/B/*/samples.jsonl")] == ["1"]


def test_the_published_one_can_be_the_best_on_validation_rows(ready_to_train):
    ready_to_train.set(profiles__tiny__replicates=2, variants__B__train__publish="lowest_eval_loss")
    ready_to_train.stage("train", "B")
    one, found = record(ready_to_train), adapters(ready_to_train)
    best = min(one["replicates"], key=lambda entry: entry["final"]["eval_loss"])["replicate"]
    assert one["published"] == best
    assert (
        found["models/B/adapter_model.safetensors"]
        == found[f"models/replicates/B/{best}/adapter_model.safetensors"]
    )


def test_a_kill_in_the_second_replicate_resumes_there_and_ends_with_the_same_bytes(twice, ready_to_train):
    ready_to_train.set(profiles__tiny__replicates=2, train__save_steps=1)
    process = started(ready_to_train, has_checkpoint(ready_to_train, 2, replicate=2))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    shutil.rmtree(ready_to_train.root / "metrics/train/B")  # DVC deletes a stage's outputs before it runs

    printed = ready_to_train.stage("train", "B")
    assert "going on from checkpoints/B/2/" in printed.stderr
    assert adapters(ready_to_train) == adapters(twice)
    assert [entry["resumed_at"] == [] for entry in record(ready_to_train)["replicates"]] == [True, False]
    assert [path.name for path in (ready_to_train.root / "checkpoints/B").iterdir()] == ["lock"]
