"""Time and memory of format on 100,000 conversations of about 560 tokens: `python -m benchmarks.format [ROWS]`.

The text is cut at random from the real sources of profile tiny (data/raw), so that it tokenises like text. Writes
benchmarks/results/format.json. Target: at most 90 s and 0.6 GiB for 100,000 rows on 2 cores, all processes together.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from ruamel.yaml import YAML

from abctune.core.files import read_json, read_rows, write_json, write_rows
from abctune.core.provenance import hardware
from benchmarks.measure import run_measured

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results/format.json"
MAX_SECONDS, MAX_PSS_GIB = 90, 0.6  # for 100,000 rows on 2 cores
MIXED = pa.schema({"source": pa.string(), "row": pa.int64(), "record": pa.string(), "group": pa.string()})


def words() -> list[str]:
    text = [
        row["record"]
        for source in ("chat", "instruct")
        for row in read_rows(ROOT / f"data/raw/{source}/rows.parquet", f"fetch@{source}")
    ]
    return [word for record in text for value in strings(json.loads(record)) for word in value.split(" ")]


def strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from strings(inner)


def records(count: int, vocabulary: list[str]) -> Iterator[dict]:
    """ShareGPT conversations of two or four turns, log-normal in length: median about 424, mean about 560 tokens."""
    rng = random.Random(0)
    for row in range(count):
        turns = rng.choice((2, 2, 2, 4))
        length = int(
            min(2000, math.exp(rng.gauss(5.6, 0.75)))
        )  # words; a word is about 1.9 tokens of this text
        pieces = [rng.randrange(len(vocabulary) - length) for _ in range(turns)]
        conversation = [
            {
                "from": ("human", "gpt")[turn % 2],
                "value": f"{row} " + " ".join(vocabulary[start : start + length // turns]),
            }
            for turn, start in enumerate(pieces)
        ]
        yield {
            "source": "chat",
            "row": row,
            "record": json.dumps({"conversations": conversation}),
            "group": None,
        }


def prepare(folder: Path, count: int) -> None:
    params = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["profiles"]["tiny"]["data"]["max_length"] = 2048
    with (folder / "params.yaml").open("w") as file:
        YAML().dump(params, file)
    for package in ("abctune", "stages"):
        shutil.copytree(ROOT / package, folder / package)
    (folder / "models").mkdir()
    (folder / "models/base").symlink_to(ROOT / "models/base")
    write_rows(folder / "data/mixed/A.parquet", records(count, words()), MIXED)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, count)
        used = run_measured([sys.executable, "-m", "stages.format", "A"], folder)
        if used.status:
            sys.exit("format failed")
        summary = read_json(folder / "data/formatted/A/summary.json", "format@A")
    counts = summary["sources"]["chat"]
    result = {
        "rows": counts["read"],
        "kept": counts["kept"],
        "mean_tokens": round(counts["n_tokens"] / counts["kept"], 1),
        "median_tokens": summary["lengths"]["quantiles"]["0.5"],
        "seconds": round(used.seconds, 1),
        "cpu_seconds": round(used.cpu_seconds, 1),
        "tokens_per_second": round(counts["n_tokens"] / used.seconds),
        "peak_rss_gib": round(used.peak_rss_gib, 2),
        "peak_pss_gib": round(used.peak_pss_gib, 2),
        "target": {"seconds": MAX_SECONDS, "pss_gib": MAX_PSS_GIB},
        "hardware": hardware(),
    }
    write_json(RESULTS, result)
    print(json.dumps(result, indent=2))
    print(
        f"{used.seconds:.1f} s of {MAX_SECONDS} s, {used.peak_pss_gib:.2f} GiB of {MAX_PSS_GIB} GiB in all processes"
    )


if __name__ == "__main__":
    main()
