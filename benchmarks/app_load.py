"""Long conversations and many clients: the chat demo and llama.cpp's own server, over HTTP, on the same files.

Both run as processes of their own. llama.cpp's server is that of `xllamacpp`, with four slots (`-np 4`) and its own
defaults for batches; its cache of past prompts, which does not tell adapters apart, is off.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np

import app.__main__  # noqa: F401  (sets for both servers how their threads wait on a busy machine)
from abctune.llm.chat import prompt_ids
from abctune.llm.prompts import PROMPTS
from app.request import CONTEXT_TOKENS
from benchmarks.app_engines import served

SLOTS = 4
PORT = 7996
QUESTION = "And what happened next? Answer in a few sentences."


class Target:
    """A server to ask: how a request is written and an answer's pieces are read."""

    def __init__(self, name: str, url: str) -> None:
        self.name, self.url = name, url

    def body(self, model: str, messages: list[dict[str, str]]) -> dict[str, Any]:
        raise NotImplementedError

    async def ask(
        self,
        client: httpx.AsyncClient,
        model: str,
        messages: list[dict[str, str]],
        tokens: int,
        seed: int,
        **settings: float,
    ) -> AsyncIterator[tuple[str, int]]:
        """New text and tokens so far."""
        body = self.body(model, messages) | {"stream": True, "max_tokens": tokens, "seed": seed} | settings
        async with client.stream("POST", self.url, json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    yield self.read(json.loads(line[6:]))

    def read(self, chunk: dict[str, Any]) -> tuple[str, int]:
        raise NotImplementedError


class Ours(Target):
    def body(self, model: str, messages: list[dict[str, str]]) -> dict[str, Any]:
        return {"model": model, "messages": messages, "stream_options": {"include_usage": True}}

    def read(self, chunk: dict[str, Any]) -> tuple[str, int]:
        text = chunk["choices"][0]["delta"].get("content", "") if chunk["choices"] else ""
        return text, (chunk.get("usage") or {}).get("completion_tokens", 0)


class Server(Target):
    def __init__(self, name: str, url: str) -> None:
        super().__init__(name, url)
        models, self._tokenizer = served()
        self._adapters = list(models.adapters)

    def body(self, model: str, messages: list[dict[str, str]]) -> dict[str, Any]:
        lora = [{"id": n, "scale": float(name == model)} for n, name in enumerate(self._adapters)]
        # The demo's defaults of the settings that both have.
        settings = {"temperature": 0.7, "top_p": 0.9, "repeat_penalty": 1.1, "top_k": 0, "min_p": 0.0}
        prompt = prompt_ids(self._tokenizer, messages)
        return {"prompt": prompt, "lora": lora, "timings_per_token": True, **settings}

    def read(self, chunk: dict[str, Any]) -> tuple[str, int]:
        text = chunk["choices"][0]["text"] if chunk["choices"] else ""
        return text, chunk.get("timings", {}).get("predicted_n", 0)


@contextmanager
def ours() -> Iterator[Target]:
    """`python -m app`, its models loaded."""
    command = [sys.executable, "-m", "app", "--port", str(PORT), "--engine", "llama.cpp"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline(), "the demo did not start"
            yield Ours("demo", f"http://127.0.0.1:{PORT}/v1/chat/completions")
        finally:
            process.terminate()


def _run_server(folder: str, address: Any) -> None:
    import os

    import xllamacpp

    from app.engines.choose import converted, gguf_of_base

    models, _ = served()
    params = xllamacpp.CommonParams()
    params.model.path = str(gguf_of_base(models.base))
    params.n_ctx, params.n_parallel, params.verbosity = CONTEXT_TOKENS * SLOTS, SLOTS, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = len(os.sched_getaffinity(0))
    params.cache_ram_mib = 0
    adapters = converted(models, Path(folder)).values()
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(path), 0.0) for path in adapters]
    server = xllamacpp.Server(params)
    address.send(server.listening_address)
    time.sleep(3600)


@contextmanager
def server() -> Iterator[Target]:
    """llama.cpp's own server."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        process = context.Process(target=_run_server, args=(folder, there), daemon=True)
        process.start()
        there.close()  # so that a process that ends early is an error here
        try:
            yield Server("llama.cpp's server", f"{here.recv()}/v1/completions")
        finally:
            process.terminate()
            process.join()


def turns(target: Target, count: int, tokens: int) -> dict[str, Any]:
    """Seconds of each turn of one conversation, and the tokens that its prompt has."""
    model, tokenizer = list(served()[0].adapters)[-1], served()[1]
    messages: list[dict[str, str]] = []
    seconds, lengths = [], []

    async def turn(seed: int) -> str:
        async with httpx.AsyncClient(timeout=300) as client:
            return "".join([text async for text, _ in target.ask(client, model, messages, tokens, seed)])

    for number in range(count):
        messages.append({"role": "user", "content": PROMPTS[0] if number == 0 else QUESTION})
        lengths.append(len(prompt_ids(tokenizer, messages)))
        started = time.perf_counter()
        text = asyncio.run(turn(number))
        seconds.append(round(time.perf_counter() - started, 3))
        messages.append({"role": "assistant", "content": text.strip() or "..."})
    return {"server": target.name, "seconds": seconds, "prompt_tokens": lengths}


def clients(target: Target, count: int, mixed: bool, tokens: int, seed: int) -> dict[str, Any]:
    """`count` clients at once: tokens/s together, and the first token of the last."""
    names = served()[0].names
    first, total = [], []

    async def one(client: httpx.AsyncClient, number: int) -> None:
        model = names[number % len(names)] if mixed else names[-1]
        messages = [{"role": "user", "content": PROMPTS[(number + seed) % len(PROMPTS)]}]
        asked, began, n = time.perf_counter(), None, 0
        async for text, so_far in target.ask(client, model, messages, tokens, seed * 100 + number):
            if text and began is None:
                began = time.perf_counter() - asked
            n = max(n, so_far)
        first.append(began or 0.0)
        total.append(n)

    async def all_of_them() -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=600, limits=limits) as client:
            await asyncio.gather(*(one(client, number) for number in range(count)))

    started = time.perf_counter()
    asyncio.run(all_of_them())
    rate = sum(total) / (time.perf_counter() - started)
    return {"tokens_per_second": round(rate, 1), "last_first_token_seconds": round(max(first), 2)}


def repeats(target: Target, prompts: int, tokens: int) -> dict[str, Any]:
    """Of greedy answers by one adapter, how many are the first one again: later, behind a talk, and among others."""
    model = list(served()[0].adapters)[-1]
    questions = [[{"role": "user", "content": text}] for text in PROMPTS[:prompts]]

    async def answers(asked: list[list[dict[str, str]]], together: bool) -> list[str]:
        async with httpx.AsyncClient(timeout=600) as client:

            async def one(messages: list[dict[str, str]]) -> str:
                pieces = target.ask(client, model, messages, tokens, 0, temperature=0)
                return "".join([text async for text, _ in pieces]).strip()

            if together:
                return list(await asyncio.gather(*map(one, asked)))
            return [await one(messages) for messages in asked]

    first = asyncio.run(answers(questions, together=False))
    talks = [
        [*question, {"role": "assistant", "content": text or "..."}, {"role": "user", "content": QUESTION}]
        for question, text in zip(questions, first, strict=True)
    ]
    # Each talk goes on from an answer that its slot has just given, or reads all of it.
    behind, fresh = [], []
    for question, talk in zip(questions, talks, strict=True):
        behind += asyncio.run(answers([question, talk], together=False))[1:]
    for talk in reversed(talks):
        fresh = asyncio.run(answers([talk], together=False)) + fresh
    later, among = (asyncio.run(answers(questions, together)) for together in (False, True))

    def same(one: list[str], other: list[str]) -> int:
        return sum(a == b for a, b in zip(one, other, strict=True))

    return {
        "server": target.name,
        "prompts": prompts,
        "same_later": same(first, later),
        "same_second_turn": same(behind, fresh),
        "same_among_others": same(first, among),
    }


def measure(counts: Sequence[int], turn_count: int, prompts: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Both servers in turns, one running at a time, so that a machine's drift meets both alike.

    Args:
        counts: how many clients ask at once.
        prompts: that greedy answers are repeated on.
        turn_count: turns of the long conversation; with 0 neither that nor repeated greedy answers are measured.
    """
    found: dict[str, Any] = {"turns": [], "greedy": [], "clients": []}
    rows: dict[tuple[str, int, bool], list[dict[str, Any]]] = {}
    for number in range(rounds):
        for start in (ours, server) if number % 2 == 0 else (server, ours):
            with start() as target:
                clients(target, 1, False, 8, 99)  # what is set up on first use
                if number == 0 and turn_count:
                    found["turns"].append(turns(target, turn_count, tokens))
                    found["greedy"].append(repeats(target, prompts, tokens))
                    print(found["turns"][-1], found["greedy"][-1], file=sys.stderr, flush=True)
                for count in counts:
                    for mixed in (False, True):
                        row = clients(target, count, mixed, tokens, number)
                        rows.setdefault((target.name, count, mixed), []).append(row)
                        print(target.name, count, mixed, row, file=sys.stderr, flush=True)
    for (name, count, mixed), several in rows.items():
        medians = {key: round(float(np.median([row[key] for row in several])), 2) for key in several[0]}
        found["clients"].append(
            {"server": name, "clients": count, "adapters": "all four" if mixed else "one", **medians}
        )
    measured = {key: rows for key, rows in found.items() if rows}
    return {key: {"rows": rows, "tokens_at_most": tokens, "rounds": rounds} for key, rows in measured.items()}


def report(found: dict[str, Any]) -> str:
    lines: list[str] = []
    if "turns" in found:
        lines += _report_turns(found["turns"]["rows"], found["greedy"]["rows"])
    if "clients" in found:
        lines += _report_clients(found["clients"]["rows"])
    return "\n".join(lines)


def _report_turns(rows: list[dict[str, Any]], greedy: list[dict[str, Any]]) -> list[str]:
    names = [row["server"] for row in rows]
    head = f"| turn | prompt tokens | {' | '.join(f'seconds, {name}' for name in names)} |"
    lines = [head, "|---:|---:|" + "---:|" * len(names)]
    count = len(rows[0]["seconds"])
    for place in sorted({0, 1, *range(4, count, 5), count - 1}):
        each = " | ".join(f"{row['seconds'][place]:.1f}" for row in rows)
        lines.append(f"| {place + 1} | {rows[0]['prompt_tokens'][place]:,} | {each} |")
    lines += [
        "",
        "| greedy answers equal to the first | asked again | second turn, read anew | all at once |",
        "|---|---:|---:|---:|",
    ]
    for row in greedy:
        counts = (row[key] for key in ("same_later", "same_second_turn", "same_among_others"))
        lines.append("| " + " | ".join([row["server"], *(f"{n} of {row['prompts']}" for n in counts)]) + " |")
    return [*lines, ""]


def _report_clients(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| clients | adapters | server | tokens/s together | first token of the last (s) |",
        "|---:|---|---|---:|---:|",
    ]
    for row in sorted(rows, key=lambda row: (row["clients"], row["adapters"], row["server"])):
        lines.append(
            f"| {row['clients']} | {row['adapters']} | {row['server']} | {row['tokens_per_second']:.0f} "
            f"| {row['last_first_token_seconds']:.2f} |"
        )
    return lines
