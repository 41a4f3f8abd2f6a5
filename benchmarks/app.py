"""The chat demo and its engines: `python -m benchmarks.app`.

On the models of this workspace and on the same prompts:
- speed: time to first token, tokens/s and memory by engine and precision, with and without an adapter, compared with
  llama.cpp's own server and the report's way; and of all models at once
- start: how long the demo takes to start
- agreement: whether llama.cpp says what transformers says (greedy answers), and how near a tie it was where it does not
- loss: the same of the test loss, and of the adapters' effect on it
- load: turns 1 to 30 of a conversation, and 1, 4 and 16 clients at once, next to llama.cpp's own server

Writes benchmarks/results/app.json, each part as soon as it is measured, and prints the tables of docs/app.md. What
cannot be measured, as a server failed, is named; the command then ends with status 1.

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
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import typer

from abctune.core.files import read_rows, write_json
from abctune.core.params import BASE, load_params
from abctune.core.places import BASE_MODEL
from abctune.core.provenance import hardware, versions
from app.engines.llama_cpp import shared_prefix
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
    """Of every number; with a median, where it is a speed, also what it is the median of."""
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


def start(engine: str) -> dict[str, Any]:
    """`python -m app`: seconds until the page comes and until the models are loaded, and the memory then."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "app", "--port", str(PORT), "--engine", engine]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            page = _page_comes(process) - began
            assert process.stdout is not None and process.stdout.readline(), "the models were not loaded"
            loaded = time.perf_counter() - began
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
        finally:
            process.send_signal(signal.SIGTERM)
    rss = pages * os.sysconf("SC_PAGE_SIZE") / 2**30
    return {"engine": engine, "page_seconds": page, "loaded_seconds": loaded, "rss_gib": rss}


def _page_comes(process: subprocess.Popen[bytes]) -> float:
    """When it was there."""
    while process.poll() is None:
        try:
            httpx.get(f"http://127.0.0.1:{PORT}/", timeout=60).raise_for_status()
            return time.perf_counter()
        except httpx.HTTPError:
            time.sleep(0.05)
    raise AssertionError("the demo did not start")


def starts(rounds: int) -> list[dict[str, Any]]:
    """Medians of each engine's starts, which take turns."""
    found = [[start(engine) for engine in ("llama.cpp", "transformers")] for _ in range(rounds)]
    return [_medians(list(rows)) for rows in zip(*found, strict=True)]


def agreement(folder: Path, prompts: int) -> dict[str, dict[str, Any]]:
    """By precision and model: on how many prompts the first tokens are transformers' own (float32, PEFT), and where
    they are not, by how many nats transformers preferred its token to the second best."""
    reference = alone(engines.greedy_answers, ("transformers", "float32"), folder, prompts, AGREEING_TOKENS)
    found = {}
    for precision in PRECISIONS:
        ours = alone(engines.greedy_answers, ("llama.cpp", precision), folder, prompts, AGREEING_TOKENS)
        found[precision] = {
            name: {
                "same": sum(a.text == b.text for a, b in zip(ours[name], expected, strict=True)),
                "prompts": prompts,
                "differences": differences(ours[name], expected),
            }
            for name, expected in reference.items()
        }
    return found


def differences(
    ours: list[engines.GreedyAnswer], expected: list[engines.GreedyAnswer]
) -> list[dict[str, Any]]:
    """Of each answer that is another: the prompt, the first token that differs, and the reference's margin there, in nats.

    A margin near zero is a near tie, which rounding decides.
    """
    found = []
    for prompt, (one, other) in enumerate(zip(ours, expected, strict=True)):
        if one.text != other.text:
            token = shared_prefix(one.ids, other.ids)
            margin = other.margins[token] if token < len(other.margins) else None  # None: it ended there
            found.append({"prompt": prompt, "token": token, "margin_nats": margin})
    return found


def losses(folder: Path, limit: int | None) -> dict[str, Any]:
    """Test loss of the base and the last variant by precision next to transformers' (metrics/eval), in nats per token,
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


def report_speed(result: dict[str, Any]) -> list[str]:
    """Each way's figures, llama.cpp next to its own server by round, all models at once."""
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
    return lines + [
        f"| {row['engine']} | {row['precision']} | {row['tokens_per_second']:.0f} |"
        for row in result["comparison"]
    ]


def report_start(result: dict[str, Any]) -> list[str]:
    """Until the page, and until the models."""
    lines = [
        "| `python -m app --engine` | first page (s) | models loaded (s) | RSS then (GiB) |",
        "|---|---:|---:|---:|",
    ]
    return lines + [
        f"| {row['engine']} | {row['page_seconds']:.1f} | {row['loaded_seconds']:.1f} | {row['rss_gib']:.2f} |"
        for row in result["start"]
    ]


def report_agreement(result: dict[str, Any]) -> list[str]:
    """On how many prompts llama.cpp's greedy answer is transformers', and how near a tie it was where it is not."""
    lines = [
        f"| base | first {AGREEING_TOKENS} tokens equal | margin where they part: median (smallest to largest), nats |",
        "|---|---|---|",
    ]
    for precision, by_model in result["agreement"].items():
        equal = ", ".join(f"{name} {row['same']}/{row['prompts']}" for name, row in by_model.items())
        lines.append(f"| {precision} | {equal} | {_margins(by_model)} |")
    return lines


def report_loss(result: dict[str, Any]) -> list[str]:
    """llama.cpp's losses next to transformers'."""
    loss = result["loss"]
    names = list(loss["loss"]["transformers"])
    lines = [f"| base | {' | '.join(f'test loss {name}' for name in names)} | effect, r |",
             "|---|" + "---:|" * (len(names) + 1)]  # fmt: skip
    for key, values in loss["loss"].items():
        effect = loss["effect_correlation"].get(key)
        cells = [f"{values[name]:.4f}" for name in names] + ["" if effect is None else f"{effect:.4f}"]
        lines.append(f"| {key} | {' | '.join(cells)} |")
    return lines


def _margins(by_model: dict[str, Any]) -> str:
    """Smallest, median and largest margin of all models' answers that differ."""
    found = [one["margin_nats"] for row in by_model.values() for one in row["differences"]]
    known = [margin for margin in found if margin is not None]
    if not known:
        return ""
    low, middle, high = min(known), float(np.median(known)), max(known)
    return f"{middle:.3f}" if len(known) == 1 else f"{middle:.3f} ({low:.3f} to {high:.3f})"


def report_load(result: dict[str, Any]) -> list[str]:
    """Long conversations and many clients."""
    load = result["load"]
    lines = app_load.report_turns(load) if "turns" in load else []
    return [*lines, "", *(app_load.report_clients(load["clients"]["rows"]) if "clients" in load else [])]


class Part(StrEnum):
    """What can be measured apart."""

    speed = "speed"
    start = "start"
    agreement = "agreement"
    loss = "loss"
    load = "load"


@contextmanager
def precisions() -> Iterator[Path]:
    """A folder with the base as GGUF in each precision."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(BASE_MODEL / "base.gguf", folder / f"{FETCHED}.gguf")
        for precision in PRECISIONS[1:]:
            alone(engines.write_base, folder, precision)
        yield folder


def main(
    part: Annotated[
        list[Part] | None, typer.Option(help="Measure this alone; repeatable. All if left out.")
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, max=10, help="Fixed prompts to ask.")] = 10,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of an answer at most.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Times that every speed is measured.")] = 3,
    rows: Annotated[int | None, typer.Option(help="loss: test rows to score; all if left out.")] = None,
    turns: Annotated[int, typer.Option(min=0, help="load: turns of the long conversation.")] = 30,
    clients: Annotated[list[int], typer.Option(help="load: clients at once; repeatable.")] = [1, 4, 16],  # noqa: B006
    results: Annotated[Path, typer.Option(help="Where to write the figures.")] = RESULTS,
) -> None:
    """Measure, write the figures of each part when it ends, and print the tables."""
    result = json.loads(results.read_text()) if results.exists() else {}
    failures: list[str] = []

    def speed_part() -> None:
        with precisions() as folder:
            result["speed"] = speeds(folder, prompts, tokens, rounds)
            shown = (("llama.cpp", FETCHED), ("transformers", "float32"))
            result["comparison"] = [alone(engines.comparison, way, folder, tokens) for way in shown]

    def start_part() -> None:
        result["start"] = starts(rounds)

    def agreement_part() -> None:
        with precisions() as folder:
            result["agreement"] = agreement(folder, prompts)

    def loss_part() -> None:
        with precisions() as folder:
            result["loss"] = losses(folder, rows)

    def load_part() -> None:
        measured = app_load.measure(turns, min(prompts, 3), clients, tokens, rounds)
        failures.extend(measured.failures)
        result["load"] = result.get("load", {}) | measured.found

    every = {Part.speed: (speed_part, report_speed), Part.start: (start_part, report_start),
             Part.agreement: (agreement_part, report_agreement), Part.loss: (loss_part, report_loss),
             Part.load: (load_part, report_load)}  # fmt: skip
    how = {
        "prompts": prompts,
        "tokens_at_most": tokens,
        "rounds": rounds,
        "hardware": hardware(),
        "versions": versions(),
    }
    for one in part or every:
        measure, report = every[one]
        try:
            measure()
            result.setdefault("measured", {})[one.value] = how
            write_json(results, result)
            print("\n".join(report(result)), end="\n\n", flush=True)
        except Exception as error:  # the other parts are measured all the same
            traceback.print_exc()
            failures.append(f"{one.value}: {type(error).__name__}: {error}")
    if failures:
        raise SystemExit("not measured:\n" + "\n".join(failures))


if __name__ == "__main__":
    typer.run(main)
