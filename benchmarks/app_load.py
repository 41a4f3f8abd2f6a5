"""Long conversations and many clients: the chat demo and llama.cpp's own server, over HTTP, on the same files.

Both run as processes of their own, at the same time, and are asked in turns: while one answers, the other waits and
is stopped (SIGSTOP), so that a machine whose speed drifts is as fast for both. llama.cpp's server is that of `xllamacpp`,
with four slots (`-np 4`) and its own defaults for batches; its cache of past prompts, which does not tell adapters
apart, is off.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
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
# Stories, which the adapters write longer than what is measured, so that both servers write as many tokens.
SUBJECTS = (
    "a lighthouse", "a bridge", "a fox", "an old clock", "a storm", "a market", "a river", "a library", "a train", "a mountain",
    "a garden", "a ship", "a letter", "a winter", "a bakery", "a violin",
)  # fmt: skip
QUESTION = "And what happened next? Answer in a few sentences."
TURN_TOKENS = 32  # of an answer in the long conversation: 30 turns then fit the context of 2,048


def connections() -> httpx.AsyncClient:
    """A client that opens a connection per request.

    llama.cpp's server closes one that it finds idle, now and then just as the next request is sent on it, which httpx
    reports as "Server disconnected without sending a response".
    """
    return httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_keepalive_connections=0))


class Target:
    """A server to ask: how a request is written and an answer's pieces are read."""

    def __init__(self, name: str, url: str, pid: int) -> None:
        self.name, self.url, self._pid = name, url, pid

    @contextmanager
    def awake(self) -> Iterator[Target]:
        """Runs for the length of the block, and is stopped after it."""
        os.kill(self._pid, signal.SIGCONT)
        try:
            yield self
        finally:
            os.kill(self._pid, signal.SIGSTOP)

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
    def __init__(self, name: str, url: str, pid: int) -> None:
        super().__init__(name, url, pid)
        models, self._tokenizer = served()
        self._adapters = list(models.adapters)

    def body(self, model: str, messages: list[dict[str, str]]) -> dict[str, Any]:
        lora = [{"id": n, "scale": float(name == model)} for n, name in enumerate(self._adapters)]
        # The demo's defaults of the settings that both have.
        settings = {"temperature": 0.7, "top_p": 0.9, "repeat_penalty": 1.1, "top_k": 0, "min_p": 0.0}
        settings["repeat_last_n"] = CONTEXT_TOKENS
        prompt = prompt_ids(self._tokenizer, messages)
        return {"prompt": prompt, "lora": lora, "timings_per_token": True, **settings}

    def read(self, chunk: dict[str, Any]) -> tuple[str, int]:
        text = chunk["choices"][0]["text"] if chunk["choices"] else ""
        return text, chunk.get("timings", {}).get("predicted_n", 0)


# libgomp's default, for both servers. The demo, and what imports its environment, lets threads sleep where the load average
# is high at the start, as it still is on a machine that has just become quiet: half the speed.
SPINNING = {"GOMP_SPINCOUNT": "300000"}


@contextmanager
def ours() -> Iterator[Target]:
    """`python -m app`, its models loaded."""
    command = [sys.executable, "-m", "app", "--port", str(PORT), "--engine", "llama.cpp"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline(), "the demo did not start"
            yield Ours("demo", f"http://127.0.0.1:{PORT}/v1/chat/completions", process.pid)
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()


def _run_server(folder: str, address: Any) -> None:
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
            assert process.pid is not None
            yield Server("llama.cpp's server", f"{here.recv()}/v1/completions", process.pid)
        finally:
            if process.is_alive():
                os.kill(process.pid or 0, signal.SIGCONT)
            process.terminate()
            process.join()


def turns(target: Target, count: int, tokens: int) -> dict[str, Any]:
    """One conversation: seconds of each turn, the tokens that its prompt has, and those of its answer."""
    model, tokenizer = list(served()[0].adapters)[-1], served()[1]
    messages: list[dict[str, str]] = []
    seconds, prompts, answers = [], [], []

    async def turn(seed: int) -> tuple[str, int]:
        async with connections() as client:
            pieces = [piece async for piece in target.ask(client, model, messages, tokens, seed)]
        return "".join(text for text, _ in pieces), max((n for _, n in pieces), default=0)

    for number in range(count):
        messages.append({"role": "user", "content": PROMPTS[0] if number == 0 else QUESTION})
        prompts.append(len(prompt_ids(tokenizer, messages)))
        started = time.perf_counter()
        text, n = asyncio.run(turn(number))
        seconds.append(round(time.perf_counter() - started, 3))
        answers.append(n)
        messages.append({"role": "assistant", "content": text.strip() or "..."})
    return {"server": target.name, "seconds": seconds, "prompt_tokens": prompts, "answer_tokens": answers}


def clients(target: Target, count: int, mixed: bool, tokens: int, seed: int) -> dict[str, Any]:
    """`count` clients at once: tokens/s together, and the first token of the last."""
    names = served()[0].names
    first, total = [], []

    async def one(client: httpx.AsyncClient, number: int) -> None:
        model = names[number % len(names)] if mixed else names[-1]
        messages = [{"role": "user", "content": long_question(number, seed)}]
        asked, began, n = time.perf_counter(), None, 0
        async for text, so_far in target.ask(client, model, messages, tokens, seed * 100 + number):
            if text and began is None:
                began = time.perf_counter() - asked
            n = max(n, so_far)
        first.append(began or 0.0)
        total.append(n)

    async def all_of_them() -> None:
        async with connections() as client:
            await asyncio.gather(*(one(client, number) for number in range(count)))

    started = time.perf_counter()
    asyncio.run(all_of_them())
    rate = sum(total) / (time.perf_counter() - started)
    return {
        "tokens_per_second": round(rate, 1),
        "last_first_token_seconds": round(max(first), 2),
        "tokens": sum(total),
    }


def long_question(number: int, seed: int) -> str:
    """One that has not been asked before: nothing of it is known to a server."""
    subject = SUBJECTS[number % len(SUBJECTS)]
    return f"Write a story of 500 words about {subject} in the year {1000 + seed * len(SUBJECTS) + number}."


def repeats(target: Target, prompts: int, tokens: int) -> dict[str, Any]:
    """Of greedy answers by one adapter, how many are the first one again: later, behind a talk, and among others."""
    model = list(served()[0].adapters)[-1]
    questions = [[{"role": "user", "content": text}] for text in PROMPTS[:prompts]]

    async def answers(asked: list[list[dict[str, str]]], together: bool) -> list[str]:
        async with connections() as client:

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


@dataclass
class Measured:
    """What was measured, and what could not be."""

    found: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def one(
        self, what: str, function: Callable[..., dict[str, Any]], target: Target, *given: Any
    ) -> dict[str, Any] | None:
        """The function's figures of a server; one that fails costs this one measurement."""
        try:
            with target.awake():
                row = function(target, *given)
        except (httpx.HTTPError, OSError, EOFError, AssertionError) as error:
            self.failures.append(f"{what}: {type(error).__name__}: {error}")
            print(self.failures[-1], file=sys.stderr, flush=True)
            return None
        print(what, row, file=sys.stderr, flush=True)
        return row


@contextmanager
def both(measured: Measured) -> Iterator[list[Target]]:
    """The servers that start, warm."""
    with ExitStack() as stack:
        targets = []
        for start in (ours, server):
            try:
                target = stack.enter_context(start())
            except (OSError, EOFError, AssertionError) as error:
                measured.failures.append(f"start of {start.__name__}: {type(error).__name__}: {error}")
                continue
            targets.append(target)
            measured.one(f"first use of {target.name}", clients, target, 1, False, 8, 99)
        yield targets


def measure_turns(targets: Sequence[Target], measured: Measured, count: int, prompts: int) -> None:
    """The long conversation, and whether greedy answers repeat themselves."""
    for name, function, given in (("turns", turns, (count, TURN_TOKENS)), ("greedy", repeats, (prompts, 16))):
        rows = [measured.one(f"{name} of {target.name}", function, target, *given) for target in targets]
        measured.found[name] = {"rows": [row for row in rows if row]}


def measure_clients(
    targets: Sequence[Target], measured: Measured, counts: Sequence[int], tokens: int, rounds: int
) -> None:
    """1, 4, 16 clients at once, in rounds in which the servers take turns at being first.

    A number that `counts` has twice is measured twice a round.
    """
    rows: dict[tuple[int, bool, str], list[dict[str, Any]]] = {}
    seeds = itertools.count()  # no question is asked twice
    for number in range(rounds):
        for count in counts:
            for mixed in (False, True):
                seed = next(seeds)
                for target in targets if number % 2 == 0 else reversed(targets):
                    what = f"{target.name}, {count} clients, {'all' if mixed else 'one'}"
                    row = measured.one(what, clients, target, count, mixed, tokens, seed)
                    rows.setdefault((count, mixed, target.name), []).append(row or {})
    measured.found["clients"] = {
        "rows": [
            {
                "server": name,
                "clients": count,
                "adapters": "all four" if mixed else "one",
                "tokens_per_second": [row.get("tokens_per_second") for row in several],
                "last_first_token_seconds": [row.get("last_first_token_seconds") for row in several],
                "tokens": [row.get("tokens") for row in several],
            }
            for (count, mixed, name), several in sorted(rows.items())
        ],
        "tokens_at_most": tokens,
    }


def measure(turn_count: int, prompts: int, counts: Sequence[int], tokens: int, rounds: int) -> Measured:
    """Both servers: the long conversation, unless it has no turns, and each number of clients."""
    os.environ |= SPINNING  # the servers' processes inherit it
    measured = Measured()
    with both(measured) as targets:
        if turn_count:
            measure_turns(targets, measured, turn_count, prompts)
        measure_clients(targets, measured, counts, tokens, rounds)
    return measured


def report_turns(found: dict[str, Any]) -> list[str]:
    """Tables of the long conversation and of repeated greedy answers."""
    rows, greedy = found["turns"]["rows"], found["greedy"]["rows"]
    columns = (f"{what} ({row['server']})" for row in rows for what in ("prompt tokens", "seconds"))
    lines = [f"| turn | {' | '.join(columns)} |", "|---:|" + "---:|---:|" * len(rows)]
    count = len(rows[0]["seconds"]) if rows else 0
    for place in sorted({0, *range(4, count, 5)}) if count else ():
        each = (f"{row['prompt_tokens'][place]:,} | {row['seconds'][place]:.2f}" for row in rows)
        lines.append(f"| {place + 1} | {' | '.join(each)} |")
    for name, part in (("first", slice(0, 10)), ("last", slice(-10, None))):
        each = (f" | {np.median(row['seconds'][part]):.2f}" for row in rows)
        lines.append(f"| median of the {name} ten | {' | '.join(each)} |")
    lines += [
        "",
        "| greedy answers equal to the first | asked again | second turn, read anew | all at once |",
        "|---|---:|---:|---:|",
    ]
    for row in greedy:
        counts = (row[key] for key in ("same_later", "same_second_turn", "same_among_others"))
        lines.append("| " + " | ".join([row["server"], *(f"{n} of {row['prompts']}" for n in counts)]) + " |")
    return lines


def report_clients(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line per number of clients and adapters: median and range of the rounds, and of the rounds' quotients."""
    lines = [
        "| clients | adapters | tokens/s, demo | llama.cpp's server | demo / server | first token of the last (s), demo | llama.cpp's server |",
        "|---:|---|---:|---:|---:|---:|---:|",
    ]
    kinds = {(row["clients"], row["adapters"]): {} for row in rows}
    for row in rows:
        kinds[row["clients"], row["adapters"]][row["server"]] = row
    for (count, adapters), by_server in kinds.items():
        ours, theirs = by_server.get("demo", {}), by_server.get("llama.cpp's server", {})
        speeds, firsts = (
            [one.get(key, []) for one in (ours, theirs)]
            for key in ("tokens_per_second", "last_first_token_seconds")
        )
        quotients = [a / b for a, b in zip(*speeds, strict=False) if a and b]
        cells = [
            _spread(speeds[0], 0),
            _spread(speeds[1], 0),
            _spread(quotients, 2),
            *(_spread(one, 2) for one in firsts),
        ]
        lines.append(f"| {count} | {adapters} | {' | '.join(cells)} |")
    return lines


def _spread(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "failed"
    middle, *ends = (f"{value:.{digits}f}" for value in (np.median(known), min(known), max(known)))
    return middle if len(known) == 1 else f"{middle} ({' to '.join(ends)})"
