"""Replicates of a variant as train leaves them, made in a moment: PEFT's adapters with random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from abctune.core.records import (
    Exposure,
    FinalLosses,
    Kept,
    ReplicateRecord,
    Schedule,
    SourceRecord,
    TrainingRecord,
    TrainResources,
    write_record,
)


def write_replicates(root: Path, variant: str, replicates: int, published: int = 1, **settings) -> None:
    """models/<variant> and models/replicates/<variant>/<r>, on the base in models/base."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = root / "models/base"
    for replicate in range(1, replicates + 1):
        torch.manual_seed(replicate)
        config = LoraConfig(
            r=4,
            target_modules=["q_proj", "down_proj"],
            task_type="CAUSAL_LM",
            init_lora_weights=False,
            **settings,
        )
        folder = root / "models/replicates" / variant / str(replicate)
        get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
    shutil.copytree(root / "models/replicates" / variant / str(published), root / "models" / variant)
    path = root / "models" / variant / "training.json"
    write_record(path, record(root, variant, replicates, published))
    source = json.loads((base / "source.json").read_text())  # as fetch wrote it, to the letter
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model": source}))


def record(root: Path, variant: str, replicates: int, published: int) -> TrainingRecord:
    """The training record of such a variant; its figures mean nothing."""
    resources = TrainResources(
        seconds=1, train_seconds=1, tokens_per_second=1, peak_rss_gib=1, peak_reserved_gib=None
    )
    trained = tuple(
        ReplicateRecord(
            replicate=number,
            seed=number,
            kept=Kept(by="last", step=4, value=None),
            final=FinalLosses(train_loss=1.0, eval_loss=None),
            resources=resources,
        )
        for number in range(1, replicates + 1)
    )
    schedule = Schedule(
        learning_rate=1,
        warmup_steps=0,
        max_steps=4,
        peak_learning_rate=1,
        peak_share=1,
        decays=True,
        sum_learning_rate=4,
    )
    return TrainingRecord(
        variant=variant,
        base_model=SourceRecord.model_validate_json((root / "models/base/source.json").read_text()),
        arguments={},
        max_length=96,
        load_in_4bit=False,
        dtype="float32",
        lora={},
        base_weights="float32",
        gradient_checkpointing="none",
        micro_batching={},
        schedule=schedule,
        processes=1,
        exposure=Exposure(conversations={}, tokens={}, supervised_tokens={}, epochs=1),
        replicates=trained,
        published=published,
        versions={},
        hardware={},
    )
