"""Wall time, peak memory and share of import time of every stage, in a fresh copy: `python -m benchmarks.pipeline`.

Runs each stage's command from dvc.yaml once, in order and without DVC's cache, then DVC itself on a pipeline
with nothing to do. Writes benchmarks/results/pipeline.json and prints the table of docs/performance.md.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import networkx
from dvc.repo import Repo

from abctune.core.files import write_json
from abctune.core.provenance import hardware, versions
from benchmarks.measure import run_measured

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results/pipeline.json"
IMPORT_TIME = re.compile(r"import time:\s+(\d+) \|", re.M)  # the `self` column, in microseconds


def commands() -> list[tuple[str, str]]:
    """(stage, command) in an order in which each stage's inputs are there."""
    graph = Repo(str(ROOT)).index.graph  # an edge points from a stage to one that it needs
    order = networkx.lexicographical_topological_sort(graph.reverse(), key=lambda stage: stage.addressing)
    return [(stage.addressing, stage.cmd) for stage in order]


def measure(command: str, folder: Path) -> dict[str, float]:
    """Run one stage; seconds, GiB at its peak (the process and its children, the larger), share spent importing."""
    with tempfile.TemporaryFile("w+") as printed:
        environment = os.environ | {"PYTHONPROFILEIMPORTTIME": "1"}
        used = run_measured(command.split(), folder, env=environment, stdout=printed, stderr=printed)
        printed.seek(0)
        text = printed.read()
    if used.status:
        lines = [line for line in text.splitlines() if not line.startswith("import time:")]
        raise SystemExit(f"{command} failed:\n" + "\n".join(lines[-20:]))
    imports = sum(map(int, IMPORT_TIME.findall(text))) / 1e6
    return {
        "seconds": round(used.seconds, 2),
        "peak_rss_gib": round(used.peak_rss_gib, 2),
        "import_share": round(imports / used.seconds, 3),
    }


def no_op_seconds() -> float | None:
    """`dvc repro` in this repository, if it has nothing to do."""
    started = time.perf_counter()
    done = subprocess.run(["dvc", "repro"], cwd=ROOT, capture_output=True, text=True, check=True)
    return None if "Running stage" in done.stdout else round(time.perf_counter() - started, 2)


def table(stages: dict[str, dict[str, float]]) -> str:
    lines = ["| stage | wall (s) | peak RSS (GiB) | importing |", "|---|---:|---:|---:|"]
    for name, row in stages.items():
        lines.append(
            f"| {name} | {row['seconds']:.1f} | {row['peak_rss_gib']:.2f} | {row['import_share']:.0%} |"
        )
    total = sum(row["seconds"] for row in stages.values())
    lines.append(
        f"| **all** | **{total:.1f}** | **{max(row['peak_rss_gib'] for row in stages.values()):.2f}** | |"
    )
    return "\n".join(lines)


def main() -> None:
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    stages = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("stages", "params.yaml", "data/own", "models/own"):
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
            copy(ROOT / name, Path(folder, name))
        # DVCLive wants to be in a Git repository.
        subprocess.run(
            "git init -q && git add -A && git -c user.name=b -c user.email=b@b commit -qm b",
            shell=True,
            cwd=folder,
            check=True,
        )
        for name, command in commands():
            stages[name] = measure(command, Path(folder))
            print(f"{name}: {stages[name]}", file=sys.stderr, flush=True)
    result: dict[str, Any] = {
        "stages": stages,
        "total_seconds": round(sum(row["seconds"] for row in stages.values()), 1),
        "no_op_dvc_repro_seconds": no_op_seconds(),
        "hardware": hardware(),
        "versions": versions(),
    }
    write_json(RESULTS, result)
    print(table(stages))
    print(f"\nNo-op `dvc repro`: {result['no_op_dvc_repro_seconds']} s")


if __name__ == "__main__":
    main()
