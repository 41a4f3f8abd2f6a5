"""What a variant can set for itself, as the stage trains it."""

import json

import pytest
import torch
from safetensors.torch import load_file

from stages.train.data import load_subset

SETTINGS = {"r": 4, "use_rslora": True, "use_dora": True, "target_modules": "all-linear"}


@pytest.fixture
def trained(ready_to_train, monkeypatch):
    """Variant B with an adapter of its own, trained for one epoch with noise on the embeddings."""
    recipe = ready_to_train.params()["variants"]["B"]["train"]
    del recipe["max_steps"]
    recipe |= {"num_train_epochs": 1, "neftune_noise_alpha": 5.0, "logging_steps": 100, "eval_steps": 100}
    tiny = ready_to_train.params()["profiles"]["tiny"]["train"]
    ready_to_train.set(
        variants__B__train=recipe,
        variants__B__lora=SETTINGS,
        profiles__tiny__train=tiny | {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 25},
    )
    ready_to_train.stage("train", "B")
    monkeypatch.chdir(ready_to_train.root)
    return ready_to_train


def test_a_variants_own_adapter_epochs_and_noise_take_effect(trained):
    config = json.loads((trained.root / "models/B/adapter_config.json").read_text())
    assert (config["r"], config["use_rslora"], config["use_dora"]) == (4, True, True)
    weights = load_file(trained.root / "models/B/adapter_model.safetensors")
    modules = {name.split(".")[-2 if "magnitude" in name else -3] for name in weights}
    assert {"q_proj", "o_proj", "up_proj", "down_proj"} <= modules and "lm_head" not in modules
    assert all(weight.dtype == torch.float32 for weight in weights.values())

    record = json.loads((trained.root / "models/B/training.json").read_text())
    rows = load_subset("B", "train").num_rows
    assert record["lora"] | SETTINGS == record["lora"]
    assert record["arguments"]["max_steps"] == -(-rows // 100) and rows % 100
    assert sum(record["exposure"]["conversations"].values()) == rows and record["exposure"]["epochs"] == 1
    assert record["arguments"]["neftune_noise_alpha"] == 5.0

    # The last step is logged and evaluated though the run is shorter than the intervals.
    final = record["replicates"][0]["final"]
    assert final["train_loss"] > 0 and final["eval_loss"] > 0
    note = (trained.root / "models/B/README.md").read_text()
    assert "abctune-B" in note and "plots/cards/B.md" in note
