"""Millions of short rows from mix into training: `python -m benchmarks.rows [ROWS]`, 3,000,000 by default.

mix, format and split are run as stages, one after the other, on generated rows; training's reading is what the train
stage does before and during its first steps: rows from Parquet, memory-mapped, in a replicate's order, 50 steps of 16
conversations. What is mapped from a file belongs to all processes. Target: 4 GiB in each process. Writes
benchmarks/results/rows.json after each stage.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from ruamel.yaml import YAML

from abctune.core.files import write_json
from abctune.core.provenance import hardware
from benchmarks.measure import Used, finding_project, run_measured

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results/rows.json"
STEPS, CONVERSATIONS = 50, 16
MAX_GIB = 4  # in each process
CHUNK = 100_000  # rows that are made at a time
READ = "import benchmarks.rows as rows, sys; rows.read(sys.argv[1])"


def raw(folder: Path, rows: int) -> None:
    """data/raw/chat as fetch leaves it."""
    folder.mkdir(parents=True)
    schema = pa.schema({"row": pa.int64(), "record": pa.string()})
    with pq.ParquetWriter(folder / "rows.parquet", schema, compression="zstd") as writer:
        for start in range(0, rows, CHUNK):
            numbers = range(start, min(rows, start + CHUNK))
            records = [
                json.dumps({"conversations": [{"from": "human", "value": f"What is {n} + 1?"}, {"from": "gpt", "value": f"{n + 1}"}]})
                for n in numbers
            ]  # fmt: skip
            writer.write_table(pa.table({"row": list(numbers), "record": records}, schema))
    (folder / "source.json").write_text('{"origin": "local", "path": "generated", "license": "none"}')


def read(out: str) -> None:
    """What training does with the rows; in a process of its own, in the project's folder."""
    from abctune.core.params import load_params
    from stages.train.data import as_dataset, exposure, load_subset
    from stages.train.micro_batching import as_rows, n_tokens

    own = psutil.Process().memory_full_info
    started, before = time.perf_counter(), own().uss
    table = load_subset("B", "train")
    opened = time.perf_counter() - started
    order = np.random.default_rng(1).permutation(table.num_rows)
    rows = as_dataset(table, order)
    exposure(table, load_params().train_of("B"), order)
    started, tokens = time.perf_counter(), 0
    for step in range(STEPS):
        batch = [rows[index] for index in range(step * CONVERSATIONS, (step + 1) * CONVERSATIONS)]
        tokens += n_tokens(as_rows(batch))
    found = {
        "seconds_to_map": round(opened, 1),
        "own_gib": round((own().uss - before) / 2**30, 2),
        "mapped_gib": round(table.nbytes / 2**30, 2),
        "seconds_for_50_steps": round(time.perf_counter() - started, 2),
    }
    found["rows"] = table.num_rows
    assert tokens >= STEPS * CONVERSATIONS
    Path(out).write_text(json.dumps(found))


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 3_000_000
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        params: Any = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text())
        params["variants"] = {"B": params["variants"]["B"] | {"mix": {"chat": rows}}}
        params["evaluation"]["test_of"] = "B"
        params["profiles"]["tiny"]["data"]["rows_scale"] = 1.0
        with (folder / "params.yaml").open("w") as file:
            YAML().dump(params, file)
        raw(folder / "data/raw/chat", rows)
        (folder / "models").mkdir()
        (folder / "models/base").symlink_to(ROOT / "models/base")
        record: dict[str, Any] = {"rows": rows, "target_gib": MAX_GIB, "machine": hardware()}
        for stage in ("mix", "format", "split"):
            measured = run_measured(
                [sys.executable, "-m", f"stages.{stage}", "B"], folder, env=finding_project(os.environ)
            )
            assert measured.status == 0, f"{stage} failed, see above"
            record[stage] = used(measured)
            write_json(RESULTS, record)
        subprocess.run(
            [sys.executable, "-c", READ, "found.json"],
            cwd=folder,
            check=True,
            env=finding_project(os.environ),
        )
        record["train"] = json.loads((folder / "found.json").read_text())
    write_json(RESULTS, record)
    print(json.dumps(record))


def used(measured: Used) -> dict[str, float]:
    return {
        "seconds": round(measured.seconds, 1),
        "cpu_seconds": round(measured.cpu_seconds, 1),
        "peak_gib": round(measured.peak_rss_gib, 2),  # of the largest process
        "peak_pss_gib": round(measured.peak_pss_gib, 2),  # of all together
    }


if __name__ == "__main__":
    main()
