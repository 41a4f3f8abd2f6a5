"""llama.cpp, inside this process: the base as GGUF, every adapter loaded once and switched on per request."""

from __future__ import annotations

import queue
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from app.engines import Job, Piece
from app.request import CONTEXT_TOKENS

# Tokens of a prompt read at a time. llama.cpp cannot be interrupted inside a call, so a long prompt is read in
# parts, each well below a second, between which `stop` takes effect.
PROMPT_PART = 128


class LlamaCpp:
    """One llama.cpp server object; `xllamacpp` runs it in threads of this process."""

    name = "llama.cpp"

    def __init__(self, base: Path, adapters: Mapping[str, Path], context: int, threads: int) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(base)
        params.n_ctx = context
        params.n_parallel = 1
        params.n_batch = params.n_ubatch = PROMPT_PART  # larger buffers would never be filled
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(path), 0.0) for path in adapters.values()]
        params.offline = True
        params.cache_ram_mib = 0  # no second copy of past prompts: memory must not grow with use
        params.verbosity = -1
        # xllamacpp also opens llama.cpp's own HTTP server on a free loopback port. Nobody needs it, so nobody
        # gets its key.
        params.api_keys = [secrets.token_hex(32)]
        params.endpoint_slots = params.endpoint_props = params.endpoint_metrics = False
        self.context = context
        self._server = xllamacpp.Server(params)
        self._names = list(adapters)

    def stream(self, jobs: Sequence[Job]) -> Iterator[Piece]:
        """One job after the other: llama.cpp does not batch requests with different adapters."""
        for index, job in enumerate(jobs):
            yield from self._stream(index, job)

    def _stream(self, index: int, job: Job) -> Iterator[Piece]:
        body = _body(
            job, [{"id": i, "scale": float(name == job.model)} for i, name in enumerate(self._names)]
        )
        yield Piece(index, "", 0)
        for end in range(PROMPT_PART, len(job.prompt), PROMPT_PART):
            self._server.handle_completions(body | {"prompt": job.prompt[:end], "max_tokens": 0})
            yield Piece(index, "", 0)
        chunks: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        stopped = threading.Event()

        def received(chunk: dict[str, Any]) -> bool:
            chunks.put(chunk)
            return stopped.is_set()  # True ends the generation

        def run() -> None:
            try:
                self._server.handle_completions(body | {"stream": True}, received)
            finally:
                chunks.put(None)

        worker = threading.Thread(target=run, name="llama.cpp", daemon=True)
        worker.start()
        try:
            yield from _pieces(index, chunks)
        finally:
            stopped.set()
            worker.join()


def _body(job: Job, lora: list[dict[str, Any]]) -> dict[str, Any]:
    """llama.cpp's fields, those that it would otherwise decide included (it defaults to top_k 40, min_p 0.05)."""
    return {
        "prompt": job.prompt,
        "lora": lora,
        "max_tokens": job.max_new_tokens,
        "temperature": job.sampling.temperature,
        "top_p": job.sampling.top_p,
        "repeat_penalty": job.sampling.repetition_penalty,
        "repeat_last_n": CONTEXT_TOKENS,  # the whole conversation, as transformers counts it
        "seed": job.sampling.seed,
        "samplers": ["penalties", "temperature", "top_p"],
        "cache_prompt": True,
        "timings_per_token": True,
    }


def _pieces(index: int, chunks: queue.SimpleQueue[dict[str, Any] | None]) -> Iterator[Piece]:
    n_tokens, finish = 0, None
    while (chunk := chunks.get()) is not None:
        if "choices" not in chunk:
            raise RuntimeError(f"llama.cpp: {chunk}")
        n_tokens = chunk.get("timings", {}).get("predicted_n", n_tokens)
        for choice in chunk["choices"]:
            finish = choice.get("finish_reason") or finish
            if choice.get("text"):
                yield Piece(index, choice["text"], n_tokens)
    if finish is None:
        raise RuntimeError("llama.cpp ended without a finish reason")
    yield Piece(index, "", n_tokens, "stop" if finish == "stop" else "length")
