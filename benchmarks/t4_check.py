"""What a T4 decides, run to the end on real data: `python -m benchmarks.t4_check`.

Variant B of profile tiny (SmolLM2, the data of data/split as `dvc repro` made it), five replicates, trained by the stage
itself on this machine's GPU, once as it is, in bfloat16, and once taken for a T4 (sm_75: float16, padded
rows, 15 GiB); both scored by the eval stage in bfloat16. Prints and writes to benchmarks/results/t4_check.json the test loss of each replicate, the mean difference
between the formats with its 95 % interval (paired, as the replicates have the same seeds), and the steps that the
gradient scaler skipped. Exits with 1 if a loss is not finite or the interval does not contain 0.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results/t4_check.json"
FORMATS = ("bfloat16", "float16")
REPLICATES = 5
STUDENT_T = 2.776  # 97.5 % point for 4 degrees of freedom


def stages_as(dtype: str) -> None:
    """Train and score in this process, in this folder."""
    import abctune.llm.environment  # noqa: F401  # isort: skip  (before torch)
    import torch

    from benchmarks.train_gpu import limit_memory, pretend_t4

    if dtype == "float16":
        limit_memory(15)
        pretend_t4()
    import stages.train.__main__ as train

    train.main(variant="B")
    torch.cuda.empty_cache()


def prepare(folder: Path) -> None:
    """A project folder with profile tiny's data, and the recipe of profile full where a CPU had forced another."""
    from ruamel.yaml import YAML

    params = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text())
    tiny = params["profiles"]["tiny"]
    tiny["replicates"] = REPLICATES
    tiny["train"] |= {"dtype": "auto", "optim": "adamw_8bit", "load_in_4bit": True}
    tiny["train"]["gradient_checkpointing"] = "auto"
    tiny["eval"] |= {"task_prompts": 0, "code_rows": 0, "max_new_tokens": 8}
    with (folder / "params.yaml").open("w") as file:
        YAML().dump(params, file)
    for name in ("split", "general"):
        shutil.copytree(ROOT / "data" / name, folder / "data" / name)
    (folder / "models").mkdir()
    (folder / "models/base").symlink_to((ROOT / "models/base").absolute())
    subprocess.run("git init -q && git commit -q --allow-empty -m start", shell=True, check=True, cwd=folder)


def run(dtype: str) -> dict[str, Any]:
    """Test loss per replicate, and what training says of itself."""
    identity = {f"GIT_{who}_{what}": "b@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = os.environ | identity
    environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{environment.get('PYTHONPATH', '')}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        for command in (["benchmarks.t4_check", dtype], ["stages.eval", "B"]):
            done = subprocess.run([sys.executable, "-m", *command], cwd=folder, env=environment)
            if done.returncode:
                sys.exit(f"{' '.join(command)} failed")
        record = json.loads((folder / "models/B/training.json").read_text())
        return {
            "test_loss": losses(folder / "metrics/eval/B/conversations.parquet"),
            "train_loss": [one["final"]["train_loss"] for one in record["replicates"]],
            "skipped_steps": [one["skipped_steps"] for one in record["replicates"]],
            "dtype": record["dtype"],
            "micro_batching": record["micro_batching"],
            "peak_reserved_gib": record["replicates"][0]["resources"]["peak_reserved_gib"],
        }


def losses(conversations: Path) -> list[float]:
    """Test loss of each replicate, nats per supervised token."""
    import pyarrow.parquet as pq

    rows = [row for row in pq.read_table(conversations).to_pylist() if row["source"] != "general"]
    found = []
    for number in sorted({row["replicate"] for row in rows}):
        mine = [row for row in rows if row["replicate"] == number]
        found.append(sum(row["nll"] for row in mine) / sum(row["n_supervised"] for row in mine))
    return found


def main() -> None:
    from abctune.core.files import write_json

    runs = {dtype: run(dtype) for dtype in FORMATS}
    differences = [a - b for b, a in zip(*(runs[dtype]["test_loss"] for dtype in FORMATS), strict=True)]
    mean = statistics.mean(differences)
    half = STUDENT_T * statistics.stdev(differences) / math.sqrt(len(differences))
    result: dict[str, Any] = {
        "runs": runs,
        "float16_minus_bfloat16": mean,
        "interval": [mean - half, mean + half],
    }
    print(json.dumps(result, indent=1))
    import torch

    from abctune.core.provenance import hardware, versions

    torch.cuda.is_available()
    write_json(RESULTS, result | {"versions": versions(), "hardware": hardware()})
    finite = all(math.isfinite(loss) for one in runs.values() for loss in one["test_loss"])
    sys.exit(not (finite and mean - half <= 0 <= mean + half))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        stages_as(sys.argv[1])
    else:
        main()
