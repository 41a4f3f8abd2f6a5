"""A base model that is split over the processes (FSDP2) trains the adapter that a whole one does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from abctune.llm.weights import weight_bytes
from stages.train.memory import choose_sharding
from tests.train.started import has_checkpoint, started
from tests.train.test_processes import ONE_THREAD, alone, project, require_same_run

__all__ = ["alone", "project"]  # fixtures
GIB = 2**30
ROOT = Path(__file__).parents[2]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone")


def test_a_sharded_model_trains_the_adapter_of_a_whole_one(alone, project):
    project.set(train__sharding="fsdp")
    done = project.stage("train", "B", PET_NPROC_PER_NODE="2", **ONE_THREAD)
    assert "the base model is split over the processes (FSDP2)" in done.stdout
    require_same_run(alone, project, 2)
    record = json.loads((project.root / "models/B/training.json").read_text())
    assert "split over the processes" in record["base_weights"]


@pytest.mark.faults
def test_an_accelerate_config_file_with_fsdp_in_it_shards_the_base(alone, project):
    config = project.root.parent / "fsdp.yaml"  # what `accelerate config` writes, as far as it is read here
    config.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: FSDP\nmixed_precision: 'no'\nnum_machines: 1\n"
        "num_processes: 2\nfsdp_config:\n  fsdp_version: 2\n  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP\n"
        "  fsdp_state_dict_type: FULL_STATE_DICT\n  fsdp_reshard_after_forward: true\n"
    )
    done = project.run(
        "accelerate", "launch", "--config_file", str(config), "-m", "stages.train", "B", **ONE_THREAD
    )
    assert "the base model is split over the processes (FSDP2)" in done.stdout
    require_same_run(alone, project, 2)


@pytest.mark.faults
def test_a_sharded_training_that_is_stopped_goes_on_to_the_same_adapter(alone, project):
    project.set(train__sharding="fsdp", train__save_steps=2)
    launcher = started(project, has_checkpoint(project, 2), True, PET_NPROC_PER_NODE="2", **ONE_THREAD)
    launcher.send_signal(signal.SIGTERM)
    said = launcher.communicate(timeout=120)[1]
    assert "stopped by SIGTERM after step" in said
    done = project.stage("train", "B", PET_NPROC_PER_NODE="2", **ONE_THREAD)
    assert "going on from checkpoints/B/" in done.stderr
    require_same_run(alone, project, 2)


@pytest.mark.faults
def test_a_4_bit_base_has_the_same_bits_where_it_is_gathered(small_model):
    # A GPU's copy of bfloat16 makes one NaN of all, and packed 4-bit weights have every bit pattern.
    done = subprocess.run(
        [*TORCHRUN, "--nproc_per_node", "2", "-m", "tests.train.gathered", str(small_model)],
        cwd=ROOT,
        env=os.environ | ONE_THREAD,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["bytes"] > 5_000 and found["changed"] == [0, 0]


@pytest.mark.parametrize(
    ("asked", "devices", "weights", "sharded"),
    [
        ("auto", 8, 6 * GIB, False),
        ("auto", 8, 141 * GIB, True),  # 70B in 16 bit
        ("auto", 8, 37 * GIB, False),  # 70B in 4 bit
        ("auto", 1, 141 * GIB, False),  # nothing to split over
        ("none", 8, 141 * GIB, False),
        ("fsdp", 2, 6 * GIB, True),
    ],
)
def test_a_base_is_sharded_where_a_gpu_of_80_gb_cannot_hold_it(asked, devices, weights, sharded):
    found, why = choose_sharding(asked, devices, weights, conversation=3 * GIB, free=78 * GIB)
    assert found is sharded and why


def test_a_models_weights_are_counted_without_loading_them(small_model):
    whole = sum(file.stat().st_size for file in small_model.glob("*.safetensors"))
    counted = weight_bytes(small_model, bytes_each=4)
    assert 0.9 * whole < counted <= whole  # float32 files with headers
    assert weight_bytes(small_model, load_in_4bit=True) < counted / 2
