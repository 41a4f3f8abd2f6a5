"""Prove the GPU path of profile full on this machine: `python -m benchmarks.gpu_check`.

A random Llama of 60M parameters takes the place of the 3B weights and generated text that of the data; all else
is as reported: 4-bit base, adamw_8bit, Unsloth's kernels and checkpointing, the Llama-3.1 template, variants A
and C with their own batches and schedules. Every stage from fetch to plot runs as a user would run it, the two
variants at the same time. With two GPUs, A is also trained by two processes. What is checked is printed line by line;
the exit status is 1 if anything fails.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

from abctune.core.places import BASE_MODEL, EVAL, MODELS, REPLICATES, SPLIT
from abctune.core.records import EvalRecord, TrainingRecord, read_record
from abctune.llm.inference import load_for_inference
from abctune.llm.likelihood import conversation_nll
from tests import small
from tests.workspace import Workspace, new_project

SHAPE = {
    "hidden_size": 640,
    "intermediate_size": 1920,
    "num_hidden_layers": 12,
    "num_attention_heads": 10,
    "num_key_value_heads": 5,
}
ROWS = 1500  # per source
BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")
VARIANTS = ("A", "C")  # B is C's recipe on other data


def prepare(folder: Path) -> Workspace:
    model = folder / "model"
    small.write_model(model, tokenizer=small.llama_tokenizer(), shape=SHAPE)
    project = new_project(folder / "project", model)
    small.write_jsonl(project.root / "data/own/chat.jsonl", small.chat_records(ROWS))
    small.write_jsonl(project.root / "data/own/instruct.jsonl", small.instruct_records(ROWS))
    small.write_jsonl(project.root / "data/own/general.jsonl", small.general_records(12))
    sources = {
        name: {"origin": "local", "path": f"data/own/{name}.jsonl"}
        for name in ("chat", "instruct", "general")
    }
    general = sources.pop("general")
    project.set(
        profile="full",
        profiles__full__model={
            "origin": "local",
            "path": "models/own/small",
            "license": "none",
            "chat_template": "llama-3.1",
        },
        profiles__full__sources=sources,
        profiles__full__general=general,
        profiles__full__data={"max_length": 512, "rows_scale": 0.1},
        profiles__full__split={"val": 0.05, "test": 0.05},
        profiles__full__replicates=2,
        profiles__full__eval__max_new_tokens=16,
        profiles__full__eval__task_prompts=8,
        profiles__full__eval__general_windows=10,
        profiles__full__eval__general_tokens=96,
    )
    params = project.params()
    project.set(
        variants={name: params["variants"][name] for name in VARIANTS}, export__variants=list(VARIANTS)
    )
    project.commit("start")
    return project


def run_all(project: Workspace) -> None:
    """The whole pipeline, two stages at the same time."""
    started = time.perf_counter()
    printed = project.tool("together", "--jobs", "2").stdout
    print(f"fetch to plot: {time.perf_counter() - started:.1f} s", flush=True)
    print(*(line for line in printed.splitlines() if line.startswith("plot: ")), sep="\n", flush=True)


def adapter(folder: Path) -> torch.Tensor:
    weights = load_file(folder / "adapter_model.safetensors")
    return torch.cat([weights[name].flatten() for name in sorted(weights)])


def two_processes(project: Workspace) -> tuple[float, list[float]]:
    """How far an adapter trained by two processes is from that of one, relative to how far apart A and C are; the losses."""
    alone = Path(shutil.copytree(project.root / MODELS / "A", project.root / "alone"))
    started = time.perf_counter()
    project.stage("train", "A", PET_NPROC_PER_NODE="2")
    print(f"train A by two processes: {time.perf_counter() - started:.1f} s", flush=True)
    folders = (alone, project.root / MODELS / "A")
    one, two, other = (adapter(folder) for folder in (*folders, project.root / MODELS / "C"))
    records = [read_record(folder / "training.json", TrainingRecord, "train@A") for folder in folders]
    assert [record.processes for record in records] == [1, 2]
    losses = [record.replicates[0].final.train_loss or 0.0 for record in records]
    return float((one - two).norm() / (one - other).norm()), losses


def val_loss(project: Workspace, variant: str) -> float:
    """The validation loss of the variant's first replicate with stock transformers and PEFT on a 16-bit base."""
    rows = pq.read_table(project.root / SPLIT / variant / "val.parquet")
    model = load_for_inference(
        torch.bfloat16, project.root / REPLICATES / variant / "1", project.root / BASE_MODEL
    )
    nll = conversation_nll(model, rows["input_ids"].to_pylist(), rows["labels"].to_pylist(), 16384)
    return sum(nll) / sum(rows["n_supervised"].to_pylist())


class Checks:
    """What was checked, printed line by line."""

    def __init__(self) -> None:
        self.passed = True

    def expect(self, what: str, holds: bool) -> None:
        self.passed &= holds
        print(f"{'ok    ' if holds else 'FAILED'} {what}", flush=True)


def check_recipe(checks: Checks, project: Workspace, variant: str) -> TrainingRecord:
    """Whether the variant was trained as params.yaml says."""
    record = read_record(
        project.root / MODELS / variant / "training.json", TrainingRecord, f"train@{variant}"
    )
    arguments, recipe = record.arguments, project.params()["variants"][variant]["train"]
    own = [key for key in recipe if key in arguments and key not in ("eval_steps", *BATCH)]
    same = all(
        str(arguments[key]) == str(recipe[key]) or float(arguments[key]) == float(recipe[key]) for key in own
    )
    # The arguments hold the whole of a step's conversations; `micro_batching` says how they went through the model.
    same &= record.conversations_per_step == recipe[BATCH[0]] * recipe[BATCH[1]]
    checks.expect(
        f"{variant}: the arguments that took effect are the recipe's ({len(own)} of them)",
        same and len(own) > 3,
    )
    small_memory = record.load_in_4bit and "8bit" in str(arguments["optim"])
    checks.expect(f"{variant}: 4-bit base, 8-bit AdamW, {record.dtype}, by {record.kernels}", small_memory)
    for one in record.replicates:
        used = one.resources
        print(
            f"       {variant}, replicate {one.replicate}: peak {used.peak_gib:.2f} GiB reserved, "
            f"{used.tokens_per_second:,.0f} tokens/s"
        )
    return record


def check(project: Workspace) -> bool:
    """Check recipes and losses; with two GPUs, a training by two processes too."""
    checks = Checks()
    losses = {
        name: read_record(
            project.root / EVAL / name / "metrics.json", EvalRecord, f"eval {name}"
        ).overall.loss
        for name in ("base", *VARIANTS)
    }
    for variant in VARIANTS:
        record = check_recipe(checks, project, variant)
        below = f"test loss {losses[variant]:.3f} below the base's {losses['base']:.3f}"
        checks.expect(f"{variant}: {below}", losses[variant] < losses["base"])
    trained, served = record.replicates[0].final.eval_loss, val_loss(project, "C")
    # 4-bit rounding of a random model's weights, and the published adapter is that of the lowest train loss.
    what = f"C: val loss {trained:.3f} in training (4-bit, Unsloth), {served:.3f} served (16-bit, PEFT)"
    checks.expect(what, abs(trained - served) < 0.1)
    if torch.cuda.device_count() > 1:
        distance, (one, two) = two_processes(project)
        # Not to the bit: bfloat16 products over micro-batches of other sizes.
        what = f"A by two processes: train loss {two:.4f}, by one {one:.4f}; adapters {distance:.4f} apart (A and C: 1)"
        checks.expect(what, abs(one - two) < 0.02 and distance < 0.2)
    return checks.passed


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("no CUDA GPU is visible: this check proves nothing here")
    print(torch.cuda.get_device_name())
    with tempfile.TemporaryDirectory() as folder:
        project = prepare(Path(folder))
        run_all(project)
        sys.exit(0 if check(project) else 1)


if __name__ == "__main__":
    main()
