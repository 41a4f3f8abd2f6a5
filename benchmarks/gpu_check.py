"""Prove the GPU path of profile full on this machine: `python -m benchmarks.gpu_check`.

A random Llama of 60M parameters takes the place of the 3B weights and generated text that of the data; all else
is as reported: 4-bit base, adamw_8bit, Unsloth's kernels and checkpointing, the Llama-3.1 template, variants A
and C with their own batches and schedules. Every stage from fetch to plot runs as a user would run it, the two
variants at the same time. With two GPUs, A is also trained by two processes. What is checked is printed line by line;
the exit status is 1 if anything fails.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

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
    project.set(
        profile="full",
        profiles__full__model={
            "origin": "local",
            "path": "models/own/small",
            "license": "none",
            "chat_template": "llama-3.1",
        },
        profiles__full__sources={
            name: {"origin": "local", "path": f"data/own/{name}.jsonl"} for name in ("chat", "instruct")
        },
        profiles__full__data={"max_length": 512, "rows_scale": 0.1},
        profiles__full__split={"val": 0.05, "test": 0.05},
    )
    params = project.params()
    project.set(
        variants={name: params["variants"][name] for name in VARIANTS},
        export__variants=list(VARIANTS),
        profiles__full__eval={"batch_tokens": 16384, "max_new_tokens": 16, "task_prompts": 0, "code_rows": 0},
    )
    project.commit("start")
    return project


def run_all(project: Workspace) -> None:
    def run(name: str, argument: str | None) -> None:
        started = time.perf_counter()
        done = project.stage(name, *([argument] if argument else []))
        print(
            f"{name} {argument or ''}: {time.perf_counter() - started:.1f} s; {done.stdout.strip().splitlines()[-1]}",
            flush=True,
        )

    def beside_each_other(name: str, arguments: Sequence[str]) -> None:
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda argument: run(name, argument), arguments))

    beside_each_other("fetch", ("--model", "chat", "instruct"))
    for name in ("mix", "format", "split", "train"):
        beside_each_other(name, VARIANTS)
    beside_each_other("eval", ("base", *VARIANTS))
    run("plot", None)


def adapter(folder: Path) -> torch.Tensor:
    weights = load_file(folder / "adapter_model.safetensors")
    return torch.cat([weights[name].flatten() for name in sorted(weights)])


def two_processes(project: Workspace) -> tuple[float, list[float]]:
    """How far an adapter trained by two processes is from that of one, relative to how far apart A and C are; the losses."""
    alone = Path(shutil.copytree(project.root / "models/A", project.root / "alone"))
    started = time.perf_counter()
    project.stage("train", "A", PET_NPROC_PER_NODE="2")
    print(f"train A by two processes: {time.perf_counter() - started:.1f} s", flush=True)
    folders = (alone, project.root / "models/A")
    one, two, other = (adapter(folder) for folder in (*folders, project.root / "models/C"))
    records = [json.loads((folder / "training.json").read_text()) for folder in folders]
    assert [record["processes"] for record in records] == [1, 2]
    return float((one - two).norm() / (one - other).norm()), [r["final"]["train_loss"] for r in records]


def val_loss(project: Workspace, variant: str) -> float:
    """The variant's validation loss with stock transformers and PEFT on a 16-bit base."""
    rows = pq.read_table(project.root / f"data/split/{variant}/val.parquet")
    model = load_for_inference(
        torch.bfloat16, project.root / "models" / variant, project.root / "models/base"
    )
    nll = conversation_nll(model, rows["input_ids"].to_pylist(), rows["labels"].to_pylist(), 16384)
    return sum(nll) / sum(rows["n_supervised"].to_pylist())


def check(project: Workspace) -> bool:
    passed = []

    def expect(what: str, holds: bool) -> None:
        passed.append(holds)
        print(f"{'ok    ' if holds else 'FAILED'} {what}", flush=True)

    losses = {
        m: json.loads((project.root / f"metrics/eval/{m}/metrics.json").read_text())["overall"]["loss"]
        for m in ("base", *VARIANTS)
    }
    for variant in VARIANTS:
        record = json.loads((project.root / f"models/{variant}/training.json").read_text())
        arguments = record["arguments"]
        recipe = project.params()["variants"][variant]["train"]
        same = all(
            str(arguments[key]) == str(recipe[key]) or float(arguments[key]) == float(recipe[key])
            for key in recipe
            if key not in ("eval_steps", *BATCH)
        )
        # The arguments hold the whole of a step's conversations; `cut` says how they went through the model.
        same &= arguments[BATCH[0]] * arguments[BATCH[1]] == recipe[BATCH[0]] * recipe[BATCH[1]]
        expect(f"{variant}: the arguments that took effect are the recipe's", same)
        expect(
            f"{variant}: 4-bit base, 8-bit AdamW, {record['dtype']}",
            record["load_in_4bit"] and "8bit" in arguments["optim"],
        )
        used = record["resources"]
        print(
            f"       {variant}: peak {used['peak_reserved_gib']:.2f} GiB reserved, {used['tokens_per_second']:,.0f} tokens/s"
        )
        expect(
            f"{variant}: test loss {losses[variant]:.3f} below the base's {losses['base']:.3f}",
            losses[variant] < losses["base"],
        )
    trained = json.loads((project.root / "models/C/training.json").read_text())["final"]["eval_loss"]
    served = val_loss(project, "C")
    # 4-bit rounding of a random model's weights, and the published adapter is that of the lowest train loss.
    what = f"C: val loss {trained:.3f} in training (4-bit, Unsloth), {served:.3f} served (16-bit, PEFT)"
    expect(what, abs(trained - served) < 0.1)
    if torch.cuda.device_count() > 1:
        distance, (one, two) = two_processes(project)
        # Not to the bit: bfloat16 products over micro-batches of other sizes.
        what = f"A by two processes: train loss {two:.4f}, by one {one:.4f}; adapters {distance:.4f} apart (A and C: 1)"
        expect(what, abs(one - two) < 0.02 and distance < 0.2)
    return all(passed)


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
