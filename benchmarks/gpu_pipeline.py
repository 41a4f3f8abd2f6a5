"""The whole of `dvc repro`, profile tiny, on a GPU: `python -m benchmarks.gpu_pipeline`.

The same model, data and variants as on the CPU, but Unsloth's GPU kernels, bfloat16 and 8-bit AdamW; once with a
4-bit base and once with a 16-bit one, side by side in copies of the project. Compared with the committed results of
the CPU run (metrics/summary.json); the 4-bit run's adapters are also scored on the 4-bit base that they were trained
on. Writes benchmarks/results/gpu_pipeline.json; exits with 1 if a variant's gain over the base that it was trained on,
on the same test rows, is outside the CPU run's 95 % interval. Without a network: PIP_NO_INDEX=1 and PIP_FIND_LINKS, a folder with the wheels.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.workspace import PROJECT_FILES, Workspace

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results/gpu_pipeline.json"
BITS = {"4-bit": True, "16-bit": False}
INTERVAL = re.compile(r"\[(.+), (.+)\]")


def prepare(folder: Path, load_in_4bit: bool) -> Workspace:
    folder.mkdir()
    for name in PROJECT_FILES:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, folder / name)
    project = Workspace(folder)
    for key, value in {
        "load_in_4bit": load_in_4bit,
        "dtype": "auto",
        "optim": "adamw_8bit",
        "gradient_checkpointing": "auto",
    }.items():
        project.set(**{f"profiles__tiny__train__{key}": value})
    project.set(
        profiles__tiny__eval__task_prompts=0, profiles__tiny__eval__code_rows=0
    )  # losses are compared
    project.git("init", "-q", "-b", "main")
    project.commit("start")
    return project


def repro(projects: dict[str, Workspace]) -> dict[str, float]:
    """Run them side by side; seconds of each."""
    started = time.perf_counter()
    running = {
        name: subprocess.Popen(
            [sys.executable, "-m", "dvc", "repro"],
            cwd=project.root,
            stdout=(project.root / "log").open("w"),
            stderr=subprocess.STDOUT,
        )
        for name, project in projects.items()
    }
    seconds: dict[str, float] = {}
    while len(seconds) < len(running):
        time.sleep(0.5)
        for name, process in running.items():
            if name not in seconds and process.poll() is not None:
                seconds[name] = round(time.perf_counter() - started, 1)
                if process.returncode:
                    print((projects[name].root / "log").read_text()[-3000:])
    return seconds


def losses(project: Workspace) -> dict[str, dict[str, float]]:
    """Test loss by model and source, as the eval stage wrote it (adapters on a 16-bit base)."""
    found = {}
    for file in sorted((project.root / "metrics/eval").glob("*/metrics.json")):
        record = json.loads(file.read_text())
        parts = {"all": record["overall"], **record["sources"]}
        found[file.parent.name] = {part: round(score["loss"], 5) for part, score in parts.items()}
    return found


def four_bit_losses(project: Workspace) -> dict[str, float]:
    """Test loss of base and adapters on a 4-bit base."""
    import pyarrow.parquet as pq
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from abctune.llm.likelihood import conversation_nll

    rows = pq.read_table(project.root / "data/split/C/test.parquet")
    columns = [rows[name].to_pylist() for name in ("input_ids", "labels")]
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    found = {}
    for name in ("base", "A", "B", "C"):
        model = AutoModelForCausalLM.from_pretrained(
            project.root / "models/base",
            dtype=torch.bfloat16,
            device_map={"": 0},
            quantization_config=four_bit,
        )
        if name != "base":
            model = PeftModel.from_pretrained(model, project.root / "models" / name)
        nll = conversation_nll(model.eval(), *columns, 16384)
        found[name] = round(sum(nll) / sum(rows["n_supervised"].to_pylist()), 5)
    return found


def compare(cpu: dict[str, Any], gpu: dict[str, float]) -> dict[str, Any]:
    """Per variant: gain over base on CPU and GPU, the CPU's interval, and whether the GPU's gain is in it."""
    found = {}
    for variant in ("A", "B", "C"):
        low, high = map(float, INTERVAL.search(cpu["verdict"][f"{variant}_vs_base"]).groups())
        gain = gpu["base"] - gpu[variant]
        found[variant] = {
            "cpu": -cpu[variant]["vs_base"],
            "interval": [low, high],
            "gpu": round(gain, 5),
            "agrees": low - 0.005 <= gain <= high + 0.005,  # the interval is printed to two digits
        }
    return found


def main() -> None:
    import torch

    from abctune.core.files import write_json
    from abctune.core.provenance import hardware, versions

    if not torch.cuda.is_available():
        sys.exit("no CUDA GPU is visible: this check proves nothing here")
    cpu = json.loads((ROOT / "metrics/summary.json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        projects = {name: prepare(Path(folder, name), four) for name, four in BITS.items()}
        seconds = repro(projects)
        result: dict[str, Any] = {"card": torch.cuda.get_device_name(), "seconds": seconds, "runs": {}}
        for name, project in projects.items():
            found = losses(project)
            overall = {model: parts["all"] for model, parts in found.items()}
            result["runs"][name] = {"test_loss": found, "gain_over_base": compare(cpu, overall)}
            for variant in "ABC":
                record = json.loads((project.root / f"models/{variant}/training.json").read_text())
                result["runs"][name].setdefault("training", {})[variant] = {
                    key: record[key]
                    for key in ("micro_batching", "dtype", "load_in_4bit", "resources", "final")
                }
        result["test_loss_cpu"] = {name: cpu[name]["test"]["nll"] for name in ("base", "A", "B", "C")}
        result |= {"versions": versions(), "hardware": hardware()}
        write_json(RESULTS, result)  # the longest part is done
        result["test_loss_on_4_bit_base"] = four_bit_losses(projects["4-bit"])
        result["gain_over_4_bit_base"] = compare(cpu, result["test_loss_on_4_bit_base"])
    write_json(RESULTS, result)
    print(json.dumps({key: value for key, value in result.items() if key != "runs"}, indent=1))
    for name, run in result["runs"].items():
        print(name, json.dumps(run["test_loss"]), json.dumps(run["gain_over_base"]))
    judged = (result["runs"]["16-bit"]["gain_over_base"], result["gain_over_4_bit_base"])
    sys.exit(not all(row["agrees"] for gains in judged for row in gains.values()))


if __name__ == "__main__":
    main()
