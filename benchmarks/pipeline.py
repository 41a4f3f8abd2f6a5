"""Seconds of each stage, and the least that the study's matrix products can take: `python -m benchmarks.pipeline`.

Runs `dvc repro` in a fresh clone of HEAD, without DVC's cache (with --here: every stage again in this folder), then
once more with nothing to do. Training and scoring are matrix products for the most part, so their number divided by
the cores' best speed, measured after the run, is a time that no code can go below without doing less. Writes
benchmarks/results/pipeline.json and prints the tables of docs/performance.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from abctune.core.files import write_json
from abctune.core.params import Params, load_params
from abctune.core.provenance import hardware, versions
from benchmarks.measure import run_repro

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results/pipeline.json"
SIZES = (
    512,
    1024,
    2048,
)  # of the square products by which the cores' speed is measured: the best of them counts
SECONDS = 2.0  # for each


def tokens(subset: str) -> tuple[int, int, int]:
    """Rows, tokens and supervised tokens of a file of data/split or of the general text."""
    table = pq.read_table(subset, columns=["input_ids", "n_supervised"])
    return (
        table.num_rows,
        sum(map(len, table["input_ids"].to_pylist())),
        sum(table["n_supervised"].to_pylist()),
    )


def weights() -> tuple[int, int]:
    """Weights of the base model's matrices, and of its head."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained("models/base")
    import torch

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = config.get_text_config().vocab_size * config.get_text_config().hidden_size
    embedded = {"model.embed_tokens.weight", "lm_head.weight"}
    matrices = (p.numel() for name, p in model.named_parameters() if p.ndim == 2 and name not in embedded)
    return sum(matrices), head


def products(params: Params) -> Iterator[tuple[str, float]]:
    """(stage, floating-point operations of its matrix products), adapters, attention and answers left out.

    A forward pass takes two operations a weight and token, a backward pass through frozen weights two more. Training
    computes the head for every token, scoring for the supervised ones.
    """
    matrices, head = weights()
    _, test, supervised = tokens(f"data/split/{params.evaluation.test_of}/test.parquet")
    general = params.active.eval.general_windows * params.active.eval.general_tokens
    scored = 2 * (test + general) * matrices + 2 * (supervised + general) * head
    yield "eval-base", scored
    for variant in params.variants:
        recipe, replicates = params.train_of(variant), params.replicates_of(variant)
        rows, train, _ = tokens(f"data/split/{variant}/train.parquet")
        seen = (
            recipe.max_steps
            * recipe.per_device_train_batch_size
            * recipe.gradient_accumulation_steps
            * train
            / rows
        )
        _, val, val_supervised = tokens(f"data/split/{variant}/val.parquet")
        evaluations = recipe.max_steps // recipe.eval_steps if recipe.eval_steps else 0
        validated = evaluations * (2 * val * matrices + 2 * val_supervised * head)
        yield f"train@{variant}", replicates * (4 * seen * (matrices + head) + validated)
        yield f"eval@{variant}", replicates * scored


def best_speed() -> float:
    """Floating-point operations a second of the fastest square product in float32, on all cores."""
    import torch

    best = 0.0
    for size in SIZES:
        a, b = torch.randn(size, size), torch.randn(size, size)
        ends = time.perf_counter() + SECONDS
        while (started := time.perf_counter()) < ends:
            a @ b
            best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def table(seconds: dict[str, float], least: dict[str, float]) -> str:
    """Markdown: each stage's seconds, and the least its products take."""
    lines = ["| stage | wall (s) | its matrix products at the cores' best speed (s) |", "|---|---:|---:|"]
    lines += [
        f"| {name} | {spent:.1f} | {f'{least[name]:.0f}' if name in least else ''} |"
        for name, spent in seconds.items()
    ]
    return "\n".join(
        [*lines, f"| **all** | **{sum(seconds.values()):.0f}** | **{sum(least.values()):.0f}** |"]
    )


def main() -> None:
    """Run, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--here", action="store_true", help="run every stage again in this folder")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where to write the figures")
    options = parser.parse_args()
    here, results = options.here, options.results.absolute()
    with tempfile.TemporaryDirectory() as scratch:
        folder = ROOT if here else Path(scratch, "clone")
        if not here:
            subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
        os.chdir(folder)
        seconds: dict[str, float] = {}
        if status := run_repro(folder, seconds, *(["--force"] if here else [])):
            sys.exit(status)
        again: dict[str, float] = {}
        run_repro(folder, again)
        speed = best_speed()
        least = {name: round(count / speed, 1) for name, count in products(load_params())}
    result: dict[str, Any] = {
        "seconds": seconds,
        "total_seconds": round(sum(seconds.values()), 1),
        "no_op_seconds": round(sum(again.values()), 1),
        "gflops": round(speed / 1e9, 1),
        "least_seconds": least,
        "hardware": hardware(),
        "versions": versions(),
    }
    write_json(results, result)
    print(table(seconds, least))
    print(
        f"\nNo-op `dvc repro`: {result['no_op_seconds']} s. Best speed: {result['gflops']} GFLOP/s in float32."
    )


if __name__ == "__main__":
    main()
