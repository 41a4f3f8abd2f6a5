"""The numbers of docs/scale.md, from what is measured here and from shapes: `python -m benchmarks.scale`.

Measured: what a token takes on disk in each stage's output (from this workspace's run), how fast DVC hashes, and,
from benchmarks/results/format.json, how fast format is. Calculated: rows, bytes, weights, gradients, operations.
Writes benchmarks/results/scale.json.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.compute as pc
import pyarrow.parquet as pq

from abctune.core.files import read_json, write_json
from abctune.core.provenance import hardware

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results/scale.json"
MEAN_TOKENS = 540  # a conversation of the full data, as ../docs/performance.md measures speed on
ROWS = 30_000  # C's, at the report's size
RANK = 16


class Shape(NamedTuple):
    layers: int
    hidden: int
    intermediate: int
    key_value: int  # width of all key heads together
    vocabulary: int
    tied: bool

    @property
    def linear(self) -> int:
        """Weights in the layers' matrices: what LoRA is put on and 4 bits are kept of."""
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * self.key_value
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def embeddings(self) -> int:
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def lora(self) -> int:
        """An adapter's weights: r x (in + out) for each of the seven matrices of a layer."""
        h, i, kv = self.hidden, self.intermediate, self.key_value
        return self.layers * RANK * (2 * (h + h) + 2 * (h + kv) + 3 * (h + i))


SHAPES = {
    "Llama-3.2-3B": Shape(28, 3072, 8192, 1024, 128_256, True),
    "Llama-3.3-70B": Shape(80, 8192, 28_672, 1024, 128_256, False),
}


def model(shape: Shape) -> dict[str, float]:
    """GB and GFLOP of a model in training."""
    return {
        "weights_16bit_gb": (shape.linear + shape.embeddings) * 2 / 1e9,
        # NF4 with its constants quantised again: 4.127 bits a weight (the QLoRA paper); embeddings stay in 16 bits.
        "weights_4bit_gb": (shape.linear * 4.127 / 8 + shape.embeddings * 2) / 1e9,
        "adapter_millions": shape.lora / 1e6,
        "gradients_gb": shape.lora * 4 / 1e9,
        "adam_8bit_gb": shape.lora * 2 / 1e9,
        # With checkpointing one hidden state a layer stays: 16 bits each.
        "checkpoints_mb_per_token": shape.layers * shape.hidden * 2 / 1e6,
        # 2 a weight forward, 2 backward for the activations; the base's own gradients are not computed. The embedding
        # is looked up, the output matrix multiplied.
        "gflop_per_token": 4 * (shape.linear + shape.vocabulary * shape.hidden) / 1e9,
    }


def disk_bytes_per_token(variant: str = "C") -> dict[str, float]:
    tables = {
        "mixed": [ROOT / f"data/mixed/{variant}.parquet"],
        "formatted": [ROOT / f"data/formatted/{variant}/rows.parquet"],
        "split": [ROOT / f"data/split/{variant}/{side}.parquet" for side in ("train", "val", "test")],
    }
    tokens = pc.sum(pq.read_table(tables["formatted"][0], columns=["n_tokens"])["n_tokens"]).as_py()
    return {stage: sum(file.stat().st_size for file in files) / tokens for stage, files in tables.items()}


def hash_mb_per_second(megabytes: int = 512) -> float:
    """DVC's hash of a file that is in memory already; by processor time, which other work cannot stretch."""
    from dvc_data.hashfile.hash import file_md5
    from dvc_objects.fs.local import LocalFileSystem

    with tempfile.NamedTemporaryFile() as file:
        for _ in range(megabytes):
            file.write(os.urandom(1_000_000))
        file.flush()
        started = time.process_time()
        file_md5(file.name, LocalFileSystem())
        return megabytes / (time.process_time() - started)


def data(times: int, per_token: dict[str, float], format_rows_per_second: float) -> dict[str, float]:
    rows = ROWS * times
    tokens = rows * MEAN_TOKENS
    return {
        "rows": rows,
        "million_tokens": tokens / 1e6,
        "disk_gb": sum(per_token.values()) * tokens / 1e9,
        # Token ids and labels, int32 each; every process of the train stage holds all of them.
        "train_memory_gb": tokens * 8 / 1e9,
        "format_minutes": rows / format_rows_per_second / 60,
        "eval_million_tokens_per_model": tokens * 0.025 / 1e6,
    }


def main() -> None:
    per_token, speed = disk_bytes_per_token(), hash_mb_per_second()
    formatted: Any = read_json(RESULTS.parent / "format.json", made_by="python -m benchmarks.format")
    rows_per_second = formatted["rows"] / formatted["seconds"]
    record = {
        "machine": hardware(),
        "disk_bytes_per_token": per_token,
        "dvc_hash_mb_per_second": speed,
        "format_rows_per_second": rows_per_second,
        "data": {f"{times}x": data(times, per_token, rows_per_second) for times in (1, 10, 100)},
        "models": {name: model(shape) for name, shape in SHAPES.items()},
    }
    write_json(RESULTS, record)
    for part in ("disk_bytes_per_token", "data", "models"):
        for name, values in record[part].items():
            shown = values if isinstance(values, dict) else {"": values}
            print(f"{part} {name}:", ", ".join(f"{key} {value:,.3g}" for key, value in shown.items()))
    print(f"DVC hashes {speed:,.0f} MB/s; format {rows_per_second:,.0f} rows/s")


if __name__ == "__main__":
    main()
