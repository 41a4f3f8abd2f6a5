"""Time and memory of fetch on a file of 300 MB, as JSON lines, as one JSON list and as CSV: `python -m benchmarks.fetch [MB]`.

The rows are those of `benchmarks.format`. Writes benchmarks/results/fetch.json. Target: at most 400 MiB for any size.
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
import tempfile
from pathlib import Path

from ruamel.yaml import YAML

from abctune.core.files import read_json, write_json
from abctune.core.provenance import hardware
from benchmarks.format import ROOT, records, words
from benchmarks.measure import run_measured

RESULTS = Path(__file__).parent / "results/fetch.json"
SUFFIXES = ("jsonl", "json", "csv")


def write_file(path: Path, size: int) -> None:
    """At least `size` bytes of rows, in the layout that the name's end says."""
    vocabulary, suffix = words(), path.suffix
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        if suffix == ".csv":
            table.writerow(["question", "answer"])
        for row in records(10**9, vocabulary):
            if suffix == ".csv":
                table.writerow([turn["value"] for turn in json.loads(row["record"])["conversations"][:2]])
            else:
                start = "[" if row["row"] == 0 else ",\n"
                file.write(row["record"] + "\n" if suffix == ".jsonl" else start + row["record"])
            if file.tell() > size:
                break
        if suffix == ".json":
            file.write("]\n")


def fetched(suffix: str, size: int) -> dict[str, float]:
    """Fetch one file in a folder of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        params = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        params["profiles"]["tiny"]["sources"]["chat"] = {"origin": "local", "path": f"data/own/chat.{suffix}"}
        with (folder / "params.yaml").open("w") as file:
            YAML().dump(params, file)
        for package in ("abctune", "stages"):
            shutil.copytree(ROOT / package, folder / package)
        path = folder / f"data/own/chat.{suffix}"
        path.parent.mkdir(parents=True)
        write_file(path, size)
        used = run_measured([sys.executable, "-m", "stages.fetch", "chat"], folder)
        if used.status:
            sys.exit("fetch failed")
        rows = read_json(folder / "data/raw/chat/source.json", "fetch@chat")["rows"]
        return {
            "megabytes": round(path.stat().st_size / 1e6),
            "rows": rows,
            "seconds": round(used.seconds, 1),
            "cpu_seconds": round(used.cpu_seconds, 1),
            "peak_rss_mib": round(used.peak_rss_gib * 1024),
        }


def main() -> None:
    """Measure every layout."""
    size = int(sys.argv[1] if len(sys.argv) > 1 else 300) * 10**6
    result = {suffix: fetched(suffix, size) for suffix in SUFFIXES} | {"hardware": hardware()}
    write_json(RESULTS, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
