"""What a T4 decides, run to the end on real data: `python -m benchmarks.t4_check`.

Variant B of profile tiny (SmolLM2, the data of data/split as `dvc repro` made it), five replicates in each format, trained
by the stage itself on this machine's GPU, the formats side by side:

    bfloat16    as the card is
    float16     the card taken for a T4: sm_75, so float16 and padded rows, and 15 GiB

Every replicate is then scored on the common test rows in float32, in which neither was trained. Prints, and writes to
benchmarks/results/t4_check.json after each format, the test loss of each replicate, the mean difference from bfloat16's
with its 95 % interval (paired, as the replicates have the same seeds), and the steps that were repeated since a scaled gradient overflowed. Exits
with 1 if a loss is not finite or float16's mean lies outside the 95 % interval of bfloat16's replicates.

`--folder` keeps what was trained and scored: the same command goes on there after it was cut off.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks.measure import GIT_IDENTITY, finding_project

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results/t4_check.json"
# What a format changes in profiles.tiny.train.
FORMATS: dict[str, dict[str, Any]] = {"bfloat16": {}, "float16": {}}
# The recipe of profile full where a CPU had forced another.
ON_A_GPU = {"dtype": "auto", "optim": "adamw_8bit", "load_in_4bit": True, "gradient_checkpointing": "auto"}
REFERENCE = "bfloat16"
REPLICATES = 5
STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # 97.5 % points by the number of replicates


def train(name: str) -> None:
    """Train in this process, in this folder."""
    import abctune.llm.environment  # noqa: F401  # isort: skip  (before torch)
    from benchmarks.train_gpu import limit_memory, pretend_t4

    if name == "float16":
        limit_memory(15)
        pretend_t4()
    import stages.train.__main__ as stage

    stage.main(variant="B")


def score() -> None:
    """Test loss of every replicate that is trained, nats per supervised token, into scores.json."""
    import abctune.llm.environment  # noqa: F401  # isort: skip  (before torch)
    import pyarrow.compute as pc
    import torch

    from abctune.core.params import load_params
    from stages.eval.replicates import adapters_of, measured
    from stages.eval.rows import test_rows

    params = load_params()
    rows, adapters = test_rows(params), adapters_of("B")
    supervised = pc.sum(rows["n_supervised"]).as_py()
    losses = {}
    for number in sorted(adapters.numbers):
        model = adapters.model(number, torch.float32)
        table = measured(model, rows, number, params.active.eval.batch_tokens)
        losses[number] = pc.sum(table["nll"]).as_py() / supervised
    Path("scores.json").write_text(json.dumps(losses))


def prepare(folder: Path, changes: dict[str, Any]) -> None:
    """A project folder with profile tiny's data."""
    from ruamel.yaml import YAML

    params = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text())
    params["profile"] = "tiny"
    params["profiles"]["tiny"]["replicates"] = REPLICATES
    params["profiles"]["tiny"]["train"] |= ON_A_GPU | changes
    folder.mkdir(parents=True)
    with (folder / "params.yaml").open("w") as file:
        YAML().dump(params, file)
    shutil.copytree(ROOT / "data/split", folder / "data/split")
    (folder / "models").mkdir()
    (folder / "models/base").symlink_to((ROOT / "models/base").absolute())
    subprocess.run("git init -q && git commit -q --allow-empty -m start", shell=True, check=True, cwd=folder)


def run(name: str, folder: Path) -> dict[str, Any]:
    """Test loss per replicate, and what training says of itself; what is there already is not made again."""
    os.environ |= GIT_IDENTITY
    environment = finding_project(os.environ)
    if not (folder / "params.yaml").exists():
        prepare(folder, FORMATS[name])
    made = {"train": "models/B/training.json", "score": "scores.json"}
    for step, result in made.items():
        if not (folder / result).exists():
            command = [sys.executable, "-m", "benchmarks.t4_check", f"--{step}", name]
            if subprocess.run(command, cwd=folder, env=environment).returncode:
                return {"failed": step}
    record = json.loads((folder / made["train"]).read_text())
    return {
        "test_loss": list(json.loads((folder / made["score"]).read_text()).values()),
        "train_loss": [one["final"]["train_loss"] for one in record["replicates"]],
        "repeated_steps": [one["repeated_steps"] for one in record["replicates"]],
        "dtype": record["dtype"],
        "base_weights": record["base_weights"],
        "micro_batching": record["micro_batching"],
        "peak_reserved_gib": record["replicates"][0]["resources"]["peak_reserved_gib"],
        "seconds": [one["resources"]["seconds"] for one in record["replicates"]],
    }


def interval(values: list[float]) -> tuple[float, float]:
    """The mean's 95 % interval by Student's t."""
    half = STUDENT_T[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values) - half, statistics.mean(values) + half


def difference(runs: dict[str, dict[str, Any]], name: str) -> dict[str, Any] | None:
    """Mean of a format's test loss minus the reference's, with its interval; None while one of both is missing."""
    pair = [runs.get(one, {}).get("test_loss") for one in (REFERENCE, name)]
    if not all(pair):
        return None
    differences = [other - reference for reference, other in zip(*pair, strict=True)]
    low, high = interval(pair[0])
    return {
        "mean": statistics.mean(differences),
        "interval": interval(differences),
        "each": differences,
        "within_reference": low <= statistics.mean(pair[1]) <= high,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "t4-check")
    parser.add_argument("--train", help=argparse.SUPPRESS)
    parser.add_argument("--score", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train(options.train)
        return
    if options.score:
        score()
        return

    from abctune.core.files import write_json
    from abctune.core.provenance import hardware, versions

    runs: dict[str, dict[str, Any]] = {}
    with ThreadPoolExecutor() as pool:
        started = {pool.submit(run, name, options.folder / name): name for name in options.only}
        for done in as_completed(started):
            runs[started[done]] = done.result()
            apart = {name: difference(runs, name) for name in runs if name != REFERENCE}
            result = {"runs": runs, f"minus_{REFERENCE}": apart}
            write_json(RESULTS, result | {"versions": versions(), "hardware": hardware()})
            print(json.dumps(result, indent=1), flush=True)
    losses = [loss for one in runs.values() for loss in one.get("test_loss", [math.nan])]
    equal = all(one and one["within_reference"] for one in apart.values())
    sys.exit(not (all(map(math.isfinite, losses)) and equal))


if __name__ == "__main__":
    main()
