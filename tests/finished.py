"""A project in which everything has run, as far as DVC and the tools behind the pipeline can tell.

The adapters are PEFT's, on the very small model, with random weights; the losses are those of tests/plot/fake_run.py.
plot has really run, and DVC has committed all outputs. Made once, in seconds: nothing is trained.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests.plot.fake_run import source_of, write_run
from tests.workspace import Workspace, new_project

VARIANTS = "ABC"
REPLICATES = 3

WEIGHTS = "adapter_model.safetensors"


def make_finished(folder: Path, model: Path) -> Workspace:
    """Write, plot and commit a study of A, B and C in an empty folder."""
    project = new_project(folder, model)
    project.draws = True
    # As far apart as trainings of one recipe were measured to be on tiny.
    write_run(folder, {}, general=40, replicates=REPLICATES, between=0.005)
    source = {"origin": "local", "path": "models/own/small", "license": "Apache-2.0"}
    project.set(profiles__tiny__model=source)
    shutil.copytree(model, folder / "models/base")
    set_base(folder, source)
    write_raw(folder)
    for own in ("data", "model"):
        project.stage("fetch", "--own", own)
    for seed, variant in enumerate(VARIANTS):
        write_adapter(folder, variant, seed)
        for path in (
            f"mixed/{variant}.parquet",
            f"formatted/{variant}/rows.parquet",
            f"split/{variant}/rows",
        ):
            (folder / "data" / path).write_text(path)
    for variant in VARIANTS:
        project.stage("collect", variant)
    project.stage("plot")
    project.run("dvc", "commit", "--force")
    project.run("dvc", "gc", "--workspace", "--force")  # `dvc commit` also caches what dvc.yaml says not to
    project.commit("a study")
    return project


def write_raw(root: Path) -> None:
    """data/raw of both sources and data/general, as later stages have read them."""
    for source in ("raw/chat", "raw/instruct", "general"):
        folder = root / "data" / source
        folder.mkdir(parents=True)
        (folder / "source.json").write_text(json.dumps(source_of(folder.name)))


def set_base(root: Path, source: dict[str, Any]) -> None:
    """Make `source` what is written about the base model, in its folder and where the variants name theirs."""
    (root / "models/base/source.json").write_text(json.dumps(source))
    for variant in VARIANTS:
        for room in ("metrics/train", "models"):
            path = root / room / variant / "training.json"
            if path.exists():
                path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model": source}))


def write_adapter(root: Path, variant: str, seed: int) -> None:
    """models/<variant> as train publishes it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, base = root / "models" / variant, root / "models/base"
    torch.manual_seed(seed)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps(settings | {"base_model_name_or_path": "models/base"})
    )
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    shutil.copy(root / "metrics/train" / variant / "training.json", folder)
    (folder / "README.md").write_text("the short card that train writes\n")
    for replicate in range(1, REPLICATES + 1):
        own = root / "models/replicates" / variant / str(replicate)
        own.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "adapter_config.json", own)
        if replicate == 1:  # the published one
            shutil.copy(folder / WEIGHTS, own)
        else:
            tensors = {name: tensor * replicate for name, tensor in load_file(folder / WEIGHTS).items()}
            save_file(tensors, own / WEIGHTS)
