"""The ways to answer that benchmarks.app measures. Each function runs in a process of its own.

A way is an engine and a precision:
- `llama.cpp`, `transformers`: the app's two engines (app/engines).
- `server`: llama.cpp's own HTTP server on the same files, with its own defaults for slots and batches.
- `generate`: the report's way, `model.generate` of transformers with a PEFT adapter, in float32.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from abctune.core.params import BASE, load_params
from abctune.core.places import BASE_MODEL
from abctune.core.provenance import peak_rss_gib
from abctune.llm.chat import prompt_ids
from abctune.llm.prompts import PROMPTS
from abctune.llm.tokenizer import load_tokenizer
from app.engines import Engine, Job
from app.engines.lora_gguf import gguf_of
from app.models import Models, find_models
from app.request import CONTEXT_TOKENS, Sampling

GREEDY = Sampling(temperature=0, repetition_penalty=1)
Way = tuple[str, str]
Ask = Callable[[Job], Iterator[int]]  # yields the number of tokens so far whenever there are more


class GreedyAnswer(NamedTuple):
    """An answer at temperature 0."""

    text: str
    ids: list[int]
    margins: list[float]  # nats by which each token was likelier than the second best


def served() -> tuple[Models, Any]:
    params = load_params()
    return find_models(Path(), BASE_MODEL, params), load_tokenizer(
        chat_template=params.active.model.chat_template
    )


def write_base(folder: Path, fmt: str) -> None:
    """The base in another GGUF precision, from the weights that transformers reads."""
    import torch

    from abctune.llm.gguf_families import text_config
    from abctune.llm.inference import load_for_inference
    from stages.export.gguf_file import write_gguf

    model = load_for_inference(torch.float32)
    write_gguf(
        folder / f"{fmt}.gguf",
        model.state_dict(),
        text_config(BASE_MODEL),
        BASE_MODEL,
        fmt,
        "base",
        len(os.sched_getaffinity(0)),
    )


def _adapters(models: Models, folder: Path) -> dict[str, Path]:
    return {
        name: gguf_of(adapter.path, adapter.sha256, models.base, folder)
        for name, adapter in models.adapters.items()
    }


def load(way: Way, models: Models, tokenizer: Any, folder: Path) -> Engine:
    """One of the app's two engines."""
    engine, precision = way
    if engine == "llama.cpp":
        from app.engines.llama_cpp import LlamaCpp

        threads = len(os.sched_getaffinity(0))
        base, adapters = folder / f"{precision}.gguf", _adapters(models, folder)
        return LlamaCpp(base, adapters, tokenizer, CONTEXT_TOKENS, threads)
    import abctune.llm.environment  # noqa: F401  # isort: skip  (before torch)
    import torch

    from app.engines.transformers_engine import TransformersEngine

    paths = {name: adapter.path for name, adapter in models.adapters.items()}
    return TransformersEngine(models.base, paths, tokenizer, CONTEXT_TOKENS, getattr(torch, precision))


def _ask_engine(engine: Engine) -> Ask:
    def ask(job: Job) -> Iterator[int]:
        for piece in engine.stream([job]):
            if piece.text:
                yield piece.n_tokens

    return ask


def _ask_server(precision: str, models: Models, folder: Path) -> Ask:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(folder / f"{precision}.gguf")
    params.n_ctx, params.n_parallel, params.verbosity = CONTEXT_TOKENS, 1, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = len(os.sched_getaffinity(0))
    # Else it restores what the base has read of a prompt for the adapter too, and answers with something between.
    params.cache_ram_mib = 0
    adapters = _adapters(models, folder)
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(path), 0.0) for path in adapters.values()]
    server = xllamacpp.Server(params)

    def ask(job: Job) -> Iterator[int]:
        body = {
            "prompt": job.prompt,
            "lora": [{"id": place, "scale": float(name == job.model)} for place, name in enumerate(adapters)],
            "max_tokens": job.max_new_tokens,
            "temperature": 0,
            "stream": True,
            "timings_per_token": True,
        }
        # A connection per request: the server closes one that it finds idle.
        url = f"{server.listening_address}/v1/completions"
        with httpx.stream("POST", url, json=body, timeout=300) as response:
            response.raise_for_status()
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    chunk = json.loads(line[6:])
                    if chunk["choices"] and chunk["choices"][0]["text"]:
                        yield chunk["timings"]["predicted_n"]

    return ask


def _ask_generate(models: Models, tokenizer: Any) -> Ask:
    import queue
    import threading

    import abctune.llm.environment  # noqa: F401  # isort: skip  (before torch)
    import torch
    from transformers.generation import BaseStreamer

    from abctune.llm.inference import load_for_inference
    from abctune.llm.stops import stop_token_ids

    adapted = list(models.adapters)[-1]
    loaded = {name: load_for_inference(torch.float32, path) for name, path in
              {BASE: None, adapted: models.adapters[adapted].path}.items()}  # fmt: skip

    class Counter(BaseStreamer):
        def __init__(self) -> None:
            self.tokens: queue.SimpleQueue[bool] = queue.SimpleQueue()

        def put(self, value: Any) -> None:
            self.tokens.put(True)

        def end(self) -> None:
            self.tokens.put(False)

    def ask(job: Job) -> Iterator[int]:
        counter, ids = Counter(), torch.tensor([job.prompt])
        options = {
            "max_new_tokens": job.max_new_tokens,
            "do_sample": False,
            "eos_token_id": sorted(stop_token_ids(tokenizer)),
            "pad_token_id": tokenizer.pad_token_id,
            "attention_mask": torch.ones_like(ids),
            "streamer": counter,
        }
        worker = threading.Thread(target=loaded[job.model].generate, args=(ids,), kwargs=options)
        worker.start()
        counter.tokens.get()  # generate hands the prompt to its streamer first
        n = 0
        while counter.tokens.get():
            n += 1
            yield n
        worker.join()

    return ask


def speed(way: Way, folder: Path, prompts: int, tokens: int) -> dict[str, Any]:
    """Time to first token (median) and tokens/s behind it, of the base and of the last variant, over the prompts."""
    started = time.perf_counter()
    models, tokenizer = served()
    engine, precision = way
    if engine == "server":
        ask = _ask_server(precision, models, folder)
    elif engine == "generate":
        ask = _ask_generate(models, tokenizer)
    else:
        ask = _ask_engine(load(way, models, tokenizer, folder))
    result: dict[str, Any] = {
        "engine": engine,
        "precision": precision,
        "load_seconds": time.perf_counter() - started,
    }
    for key, model in (("base", BASE), ("adapter", list(models.adapters)[-1])):
        jobs = [
            Job(model, prompt_ids(tokenizer, [{"role": "user", "content": text}]), tokens, GREEDY)
            for text in PROMPTS[:prompts]
        ]
        for _ in ask(jobs[-1]):  # what is set up on first use
            pass
        result[key] = _timed(ask, jobs)
    return {**result, "peak_rss_gib": round(peak_rss_gib(), 3)}


def _timed(ask: Ask, jobs: list[Job]) -> dict[str, float]:
    firsts, seconds, counts = [], 0.0, 0
    for job in jobs:
        asked = time.perf_counter()
        times = [(time.perf_counter(), n) for n in ask(job)]
        if not times:  # the model ended its turn without a word
            continue
        firsts.append(times[0][0] - asked)
        seconds += times[-1][0] - times[0][0]
        counts += times[-1][1] - times[0][1]
    return {
        "first_token_seconds": round(sorted(firsts)[len(firsts) // 2], 4),
        "tokens_per_second": round(counts / seconds, 1),
        "tokens": counts,
    }


def comparison(way: Way, folder: Path, tokens: int) -> dict[str, Any]:
    """Tokens/s of all models' answers to one prompt, growing together."""
    models, tokenizer = served()
    engine = load(way, models, tokenizer, folder)
    jobs = [
        Job(name, prompt_ids(tokenizer, [{"role": "user", "content": PROMPTS[0]}]), tokens, GREEDY)
        for name in models.names
    ]
    for _ in engine.stream([Job(job.model, job.prompt, 2, GREEDY) for job in jobs]):
        pass
    started, counts = time.perf_counter(), [0] * len(jobs)
    for piece in engine.stream(jobs):
        counts[piece.index] = piece.n_tokens
    rate = sum(counts) / (time.perf_counter() - started)
    return {"engine": way[0], "precision": way[1], "models": len(jobs), "tokens_per_second": round(rate, 1)}


def greedy_answers(way: Way, folder: Path, prompts: int, tokens: int) -> dict[str, list[GreedyAnswer]]:
    """Each model's first tokens on the fixed prompts."""
    models, tokenizer = served()
    engine = load(way, models, tokenizer, folder)

    def answer(name: str, text: str) -> GreedyAnswer:
        prompt = prompt_ids(tokenizer, [{"role": "user", "content": text}])
        pieces = list(engine.stream([Job(name, prompt, tokens, GREEDY, likeliest=2)]))
        scores = [score for piece in pieces for score in piece.scores]
        margins = [score.likeliest[0].logprob - score.likeliest[1].logprob for score in scores]
        words = "".join(piece.text for piece in pieces)
        return GreedyAnswer(words, [score.id for score in scores], [round(one, 5) for one in margins])

    return {name: [answer(name, text) for text in PROMPTS[:prompts]] for name in models.names}


def conversation_nll(
    precision: str, folder: Path, rows: list[dict[str, Any]], names: list[str]
) -> dict[str, list[float]]:
    """-log p of each row's supervised tokens under llama.cpp, summed by row, in nats, for the models named."""
    models, tokenizer = served()
    engine = load(("llama.cpp", precision), models, tokenizer, folder)
    return {
        name: [
            -sum(
                engine.log_probability(name, row["input_ids"][:place], label)
                for place, label in enumerate(row["labels"])
                if label >= 0
            )
            for row in rows
        ]
        for name in names
    }
