"""The chat demo's engines beside each other: `python -m benchmarks.app`.

On the models of this workspace, in one run and on the same prompts: time to first token, tokens/s and memory by
engine and precision, with and without an adapter, beside llama.cpp's own server and the report's way; how long the
demo takes to start; and whether llama.cpp says what transformers says - greedy answers, test loss, and the
adapters' effect on it. Writes benchmarks/results/app.json and prints the tables of docs/app.md.

A quiet machine gives fair figures: llama.cpp's threads wait by spinning, and other work slows it tenfold.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import typer

from abctune.core.files import read_rows, write_json
from abctune.core.params import BASE, load_params
from abctune.core.provenance import hardware, versions
from abctune.llm.tokenizer import BASE_MODEL
from benchmarks import app_engines as engines
from benchmarks import app_load
from benchmarks.app_engines import Way

RESULTS = Path(__file__).parent / "results/app.json"
FETCHED = "q4_1"  # tiny's base as it comes
PRECISIONS = (FETCHED, "q8_0", "f16")
WAYS: tuple[Way, ...] = (
    *((engine, precision) for precision in PRECISIONS for engine in ("llama.cpp", "server")),
    ("transformers", "float32"),
    ("transformers", "bfloat16"),
    ("generate", "float32"),
)
AGREEING_TOKENS = 20
PORT = 7997


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call in a fresh process, so that memory, threads and environment are its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def speeds(folder: Path, prompts: int, tokens: int, rounds: int) -> list[dict[str, Any]]:
    """Each way's figures: medians of a process per round, in which the ways take turns, since a machine's speed drifts."""
    found: dict[Way, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            found[way].append(alone(engines.speed, way, folder, prompts, tokens))
            print(found[way][-1], file=sys.stderr, flush=True)
    return [_medians(rows) for rows in found.values()]


def _medians(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of every number; beside a median, where it is a speed, what it is the median of."""
    result: dict[str, Any] = {}
    for key, value in rows[0].items():
        values = [row[key] for row in rows]
        if isinstance(value, dict):
            result[key] = _medians(values)
        else:
            result[key] = value if isinstance(value, str) else round(float(np.median(values)), 4)
        if key == "tokens_per_second":
            result["rounds"] = values
    return result


def start(engine: str) -> dict[str, float]:
    """`python -m app`: seconds until the page comes, and the memory it then holds."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "app", "--port", str(PORT), "--engine", engine]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            while process.poll() is None:
                try:
                    httpx.get(f"http://127.0.0.1:{PORT}/", timeout=5).raise_for_status()
                    break
                except httpx.HTTPError:
                    time.sleep(0.05)
            else:
                raise SystemExit("the demo did not start")
            seconds = time.perf_counter() - started
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
        finally:
            process.send_signal(signal.SIGTERM)
    return {
        "engine": engine,
        "seconds": round(seconds, 1),
        "rss_gib": round(pages * os.sysconf("SC_PAGE_SIZE") / 2**30, 2),
    }


def agreement(folder: Path, prompts: int) -> dict[str, dict[str, Any]]:
    """By precision and model: on how many prompts the first tokens are transformers' own (float32, PEFT)."""
    reference = alone(engines.greedy_answers, ("transformers", "float32"), folder, prompts, AGREEING_TOKENS)
    found = {}
    for precision in PRECISIONS:
        ours = alone(engines.greedy_answers, ("llama.cpp", precision), folder, prompts, AGREEING_TOKENS)
        found[precision] = {
            name: {
                "same": sum(a == b for a, b in zip(ours[name], expected, strict=True)),
                "prompts": prompts,
            }
            for name, expected in reference.items()
        }
    return found


def losses(folder: Path, limit: int | None) -> dict[str, Any]:
    """Test loss of the base and the last variant by precision beside transformers' (metrics/eval), in nats per token,
    and how far the variant's effect on a conversation is the same: the correlation of (variant - base) per token."""
    params = load_params()
    variant = list(params.variants)[-1]
    path = Path("data/split") / params.evaluation.test_of / "test.parquet"
    columns = ["id", "input_ids", "labels", "n_supervised"]
    rows = list(read_rows(path, f"split@{params.evaluation.test_of}", columns))[:limit]
    tokens = np.array([row["n_supervised"] for row in rows])
    nll = {"transformers": {name: _scored(name, rows) for name in (BASE, variant)}}
    for precision in PRECISIONS:
        nll[precision] = alone(engines.conversation_nll, precision, folder, rows, [BASE, variant])
    effects = {key: (np.array(value[variant]) - np.array(value[BASE])) / tokens for key, value in nll.items()}
    return {
        "conversations": len(rows),
        "tokens": int(tokens.sum()),
        "variant": variant,
        "loss": {
            key: {name: round(sum(sums) / tokens.sum(), 5) for name, sums in value.items()}
            for key, value in nll.items()
        },
        "effect_correlation": {
            key: round(float(np.corrcoef(effect, effects["transformers"])[0, 1]), 4)
            for key, effect in effects.items()
            if key != "transformers"
        }
        if len(rows) > 2  # two points are always on a line
        else {},
    }


def _scored(name: str, rows: list[dict[str, Any]]) -> list[float]:
    """What stages/eval found for these rows."""
    known = {
        row["id"]: row["nll"]
        for row in read_rows(Path("metrics/eval") / name / "conversations.parquet", f"eval@{name}")
    }
    return [known[row["id"]] for row in rows]


def report(result: dict[str, Any]) -> str:
    lines = [
        "| engine | precision | tokens/s base | with adapter | first token, base (s) | with adapter | load (s) | peak RSS (GiB) |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["speed"]:
        base, adapter = row["base"], row["adapter"]
        lines.append(
            f"| {row['engine']} | {row['precision']} | {base['tokens_per_second']:.0f} | {adapter['tokens_per_second']:.0f} "
            f"| {base['first_token_seconds']:.2f} | {adapter['first_token_seconds']:.2f} "
            f"| {row['load_seconds']:.1f} | {row['peak_rss_gib']:.2f} |"
        )
    by_way = {(row["engine"], row["precision"]): row for row in result["speed"]}
    lines += [
        "",
        "| llama.cpp / its own server, tokens/s of each round | base | with adapter |",
        "|---|---:|---:|",
    ]
    for precision in PRECISIONS:
        ours, server = by_way["llama.cpp", precision], by_way["server", precision]
        ratios = (
            ", ".join(f"{a / b:.2f}" for a, b in zip(ours[key]["rounds"], server[key]["rounds"], strict=True))
            for key in ("base", "adapter")
        )
        lines.append(f"| {precision} | {' | '.join(ratios)} |")
    lines += ["", "| all models at once | precision | tokens/s together |", "|---|---|---:|"]
    lines += [
        f"| {row['engine']} | {row['precision']} | {row['tokens_per_second']:.0f} |"
        for row in result["comparison"]
    ]
    lines += ["", "| `python -m app --engine` | first page (s) | RSS then (GiB) |", "|---|---:|---:|"]
    lines += [f"| {row['engine']} | {row['seconds']:.1f} | {row['rss_gib']:.2f} |" for row in result["start"]]
    loss = result["loss"]
    names = list(loss["loss"]["transformers"])
    lines += [
        "",
        f"| base | first {AGREEING_TOKENS} tokens equal | {' | '.join(f'test loss {name}' for name in names)} | effect, r |",
        "|---|---|" + "---:|" * (len(names) + 1),
    ]
    for key, values in loss["loss"].items():
        same = result["agreement"].get(key, {})
        equal = (
            ", ".join(f"{name} {row['same']}/{row['prompts']}" for name, row in same.items())
            or "(the reference)"
        )
        effect = loss["effect_correlation"].get(key)
        lines.append(
            f"| {key} | {equal} | {' | '.join(f'{values[name]:.4f}' for name in names)} "
            f"| {'' if effect is None else f'{effect:.4f}'} |"
        )
    return "\n".join(lines)


def main(
    prompts: Annotated[int, typer.Option(min=1, max=10, help="Fixed prompts to ask.")] = 10,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of an answer at most.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Times that every way's speed is measured.")] = 3,
    rows: Annotated[int | None, typer.Option(help="Test rows to score; all if left out.")] = None,
    results: Annotated[Path, typer.Option(help="Where to write the figures.")] = RESULTS,
    load: Annotated[
        bool,
        typer.Option(
            "--load", help="Only turns 1 to 30, and 1, 4 and 16 clients, beside llama.cpp's server."
        ),
    ] = False,
    turns: Annotated[int, typer.Option(min=0, help="With --load: turns of the long conversation.")] = 30,
    clients: Annotated[
        list[int] | None, typer.Option(help="With --load: clients at once; repeatable.")
    ] = None,
) -> None:
    if load:
        found = app_load.measure(clients or (), turns, prompts, tokens, rounds)
        known = json.loads(results.read_text()) if results.exists() else {}
        measured = known.get("load", {}) | found | {"hardware": hardware(), "versions": versions()}
        write_json(results, known | {"load": measured})
        print(app_load.report(found))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(BASE_MODEL / "base.gguf", folder / f"{FETCHED}.gguf")
        for precision in PRECISIONS[1:]:
            alone(engines.write_base, folder, precision)
        result: dict[str, Any] = {"prompts": prompts, "tokens_at_most": tokens, "rounds": rounds}
        result["speed"] = speeds(folder, prompts, tokens, rounds)
        shown = (("llama.cpp", FETCHED), ("transformers", "float32"))
        result["comparison"] = [alone(engines.comparison, way, folder, tokens) for way in shown]
        result["start"] = [start(engine) for engine in ("llama.cpp", "transformers")]
        result["agreement"] = agreement(folder, prompts)
        result["loss"] = losses(folder, rows)
    result |= {"hardware": hardware(), "versions": versions()}
    write_json(results, result)
    print(report(result))


if __name__ == "__main__":
    typer.run(main)
