"""The stage as a whole on a very small model: same seed same bytes, what is published, what never is."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from tests.workspace import Workspace


def published(project, variant="B"):
    return (project.root / f"models/{variant}/adapter_model.safetensors").read_bytes()


def curve(project, name, variant="B"):
    return (project.root / f"metrics/train/{variant}/1/plots/metrics/{name}.tsv").read_text()


def record(project, variant="B"):
    return json.loads((project.root / f"models/{variant}/training.json").read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory, split_once):
    """Variant B trained and evaluated once."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(split_once, folder, dirs_exist_ok=True)
    project = Workspace(folder)
    project.printed = project.stage("train", "B")
    project.stage("eval", "B")
    return project


def test_two_runs_with_one_seed_give_the_same_adapter_and_metrics_to_the_byte(trained, ready_to_train):
    # Live samples after every step, too: looking at a model must not change how it trains.
    ready_to_train.set(train__sample_every=1)
    ready_to_train.stage("train", "B")
    assert published(ready_to_train) == published(trained)
    for name in ("train/loss", "train/learning_rate", "train/grad_norm", "eval/loss"):
        assert curve(ready_to_train, name) == curve(trained, name)
    ready_to_train.stage("eval", "B")
    for name in ("conversations.parquet", "samples.jsonl"):
        file = f"metrics/eval/B/{name}"
        assert (ready_to_train.root / file).read_bytes() == (trained.root / file).read_bytes()
    samples = (ready_to_train.root / "metrics/train/B/1/samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in samples] == [1, 2, 3, 4, 4]


def test_another_seed_gives_another_adapter(trained, ready_to_train):
    ready_to_train.set(seed=1)
    ready_to_train.stage("train", "B")
    assert published(ready_to_train) != published(trained)


def test_the_adapter_learns_and_comes_with_its_papers(trained):
    weights = load_file(trained.root / "models/B/adapter_model.safetensors")
    assert all(weights[name].abs().sum() > 0 for name in weights if "lora_B" in name)
    files = {path.name for path in (trained.root / "models/B").iterdir()}
    assert {
        "adapter_config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "README.md",
        "training.json",
    } <= files
    assert (
        json.loads((trained.root / "models/B/adapter_config.json").read_text())["base_model_name_or_path"]
        == "models/base"
    )
    assert [path.name for path in (trained.root / "checkpoints/B").iterdir()] == ["lock"]


def test_the_resolved_arguments_are_the_recipes(trained):
    arguments, recipe = record(trained)["arguments"], trained.params()["variants"]["B"]["train"]
    assert arguments["learning_rate"] == pytest.approx(10 * float(recipe["learning_rate"]))
    assert arguments["warmup_steps"] == 50 and arguments["max_steps"] == 4
    assert arguments["per_device_train_batch_size"] == 1 and arguments["weight_decay"] == 0.01
    assert arguments["seed"] == 3407 and arguments["logging_nan_inf_filter"] is False
    assert record(trained)["exposure"]["conversations"] == {"chat": 4}


def test_the_schedules_trap_is_one_clear_line_before_training(trained):
    lines = [line for line in trained.printed.stderr.splitlines() if line.startswith("warning: ")]
    assert lines == [
        "warning: B: warmup_steps 50 >= max_steps 4: the learning rate peaks at 1.2e-05 (6% of 0.0002) on the last step and never decays"
    ]
    assert record(trained)["schedule"]["warnings"] == [lines[0].removeprefix("warning: B: ")]


def test_curves_are_logged_by_optimizer_step(trained):
    steps = [line.split("\t")[0] for line in curve(trained, "train/loss").splitlines()]
    assert steps == ["step", "2", "4"]
    assert [line.split("\t")[0] for line in curve(trained, "eval/loss").splitlines()] == ["step", "2", "4"]


def test_the_last_line_tells_time_speed_and_memory(trained):
    assert trained.printed.stdout.strip().splitlines()[-1].startswith("B, replicate 1: ")
    for unit in (" s, ", " tokens/s, peak ", " GiB"):
        assert unit in trained.printed.stdout.strip().splitlines()[-1]


def test_a_loss_that_is_no_number_ends_the_run_and_publishes_nothing(ready_to_train):
    weights = ready_to_train.root / "models/base/model.safetensors"
    broken = load_file(weights)
    broken["model.norm.weight"][0] = float("nan")
    save_file(broken, weights, metadata={"format": "pt"})
    done = ready_to_train.stage("train", "A", check=False)
    assert done.returncode == 1
    assert "error: loss is nan at step 1; nothing is published" in done.stderr
    assert not (ready_to_train.root / "models/A").exists()


def test_4_bit_without_a_gpu_is_one_line_that_names_the_key(ready_to_train):
    ready_to_train.set(profiles__tiny__train__load_in_4bit=True)
    done = ready_to_train.stage("train", "A", check=False)
    assert done.returncode == 1
    assert (
        "error: load_in_4bit: true needs a CUDA GPU, and there is none to use (Found no NVIDIA driver"
        in done.stderr
    )
