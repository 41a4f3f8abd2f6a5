"""llama.cpp, inside this process: the base as GGUF, every adapter loaded once and switched on per request.

Each model has a slot of its own, which keeps what it has read of a conversation, so that the next turn costs its new
tokens. A slot is never lent to another model: that alone keeps an adapter from answering from another's cache. llama.cpp puts only requests with
equal adapters into one batch and finishes one such batch before the next (measured: four answers asked for at once
came one after the other). So a comparison takes turns here, one token per model and round.
"""

from __future__ import annotations

import queue
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abctune.core.errors import UserError
from abctune.core.params import BASE
from app.engines import Job, Likely, Piece, TokenScore
from app.engines.streaming import StreamingAnswer
from app.request import CONTEXT_TOKENS, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokens of a prompt read at a time. llama.cpp cannot be interrupted inside a call, so a long prompt is read in
# parts, each well below a second, between which `stop` takes effect.
PROMPT_PART = 128
SEEDS = 2**32 - 1  # the largest unsigned seed means "draw one" to llama.cpp
CHARACTER_TOKENS = 4  # UTF-8 writes a character in at most four bytes, so a tokenizer in at most four tokens
END = -1


class LlamaCpp:
    """One llama.cpp server object; `xllamacpp` runs it in threads of this process."""

    name = "llama.cpp"

    def __init__(
        self,
        base: Path,
        adapters: Mapping[str, Path],
        tokenizer: PreTrainedTokenizerBase,
        context: int,
        threads: int,
    ) -> None:
        import xllamacpp

        self.context, self._tokenizer = context, tokenizer
        self._models = [BASE, *adapters]
        # What each model's slot holds, and at which strength it was read: llama.cpp keeps it and does not tell.
        self._held: dict[str, list[int]] = {name: [] for name in self._models}
        self._strength = dict.fromkeys(self._models, 1.0)

        params = xllamacpp.CommonParams()
        params.model.path = str(base)
        params.n_parallel = len(self._models)
        params.n_ctx = context * params.n_parallel
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
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError as error:
            raise UserError(
                f"llama.cpp does not load {base} with {', '.join(adapters) or 'no adapter'} ({error}); use --engine "
                "transformers"
            ) from None

    def stream(self, jobs: Sequence[Job]) -> Iterator[Piece]:
        """One answer at full speed, several in turns."""
        for index, job in enumerate(jobs):
            yield Piece(index, "", 0)
            yield from self._read(index, job)
        yield from self._alone(jobs[0]) if len(jobs) == 1 else self._in_turns(jobs)

    def _read(self, index: int, job: Job) -> Iterator[Piece]:
        """Let the job's slot read all but the last part of the prompt, from where it differs from what the slot holds.

        A shorter prompt would make llama.cpp cut the slot back to it and read the rest again.
        """
        if (
            self._strength[job.model] != job.sampling.adapter_strength
        ):  # llama.cpp then forgets what it has read
            self._strength[job.model], self._held[job.model] = job.sampling.adapter_strength, []
        known = shared_prefix(self._held[job.model], job.prompt)
        for end in range(known + PROMPT_PART, len(job.prompt), PROMPT_PART):
            self._held[job.model] = job.prompt[:end]
            self._server.handle_completions(self._body(job) | {"prompt": job.prompt[:end], "max_tokens": 0})
            yield Piece(index, "", 0)
        self._held[job.model] = job.prompt

    def _in_turns(self, jobs: Sequence[Job]) -> Iterator[Piece]:
        answers = [StreamingAnswer(job) for job in jobs]
        while any(not answer.finish for answer in answers):
            for index, answer in enumerate(answers):
                if answer.finish:
                    continue
                for token in self._next_tokens(answer):
                    piece = answer.take(index, token, self._tokenizer, token == END)
                    self._held[answer.job.model] = answer.job.prompt + answer.ids
                    if piece:
                        yield piece
                    if answer.finish:
                        break

    def _next_tokens(self, answer: StreamingAnswer) -> list[int]:
        """The ids that follow: one, or those of a character of several; END where the model ends its turn.

        The slot still holds all but the last token, so nothing is read twice.
        """
        body = self._body(answer.job) | {
            "prompt": answer.job.prompt + answer.ids,
            "logprobs": 1,  # the only field that tells a token's id
            # A random number per place, the same one for every model, as in the other engine.
            "seed": ((answer.job.sampling.seed or 0) + 0x9E3779B9 * len(answer.ids)) % SEEDS,
        }
        for count in range(1, CHARACTER_TOKENS + 1):
            reply = self._server.handle_completions(body | {"max_tokens": count})
            if "choices" not in reply:
                raise RuntimeError(f"llama.cpp: {reply}")
            (choice,) = reply["choices"]
            if choice["finish_reason"] == "stop":
                return [END]
            if count == 1 and choice["logprobs"]:
                return [choice["logprobs"]["content"][0]["id"]]
            # llama.cpp names no token that ends within a character (its text is U+FFFD): ask again for one more.
            if not choice["text"].endswith("\ufffd"):
                return self._tokenizer.encode(choice["text"], add_special_tokens=False)
        return self._tokenizer.encode("\ufffd", add_special_tokens=False)  # no character after all

    def score(self, job: Job, ids: Sequence[int], likeliest: int) -> Iterator[TokenScore]:
        """Each token of `ids` behind the job's prompt; costs what generating them costs."""
        for _ in self._read(0, job):
            pass
        text = self._tokenizer.decode
        for place, token in enumerate(ids):
            read = [*job.prompt, *ids[:place]]
            self._held[job.model] = read
            scores = self._scores(job, read, token, likeliest)
            order = sorted(scores, key=scores.__getitem__, reverse=True)[:likeliest]
            yield TokenScore(
                token,
                text([token]),
                scores[token],
                tuple(Likely(one, text([one]), scores[one]) for one in order),
            )

    def log_probability(self, model: str, ids: list[int], token: int) -> float:
        """Natural logarithm of the probability that the model gives the token behind `ids`, by its plain scores."""
        return self._scores(Job(model, ids, 1, Sampling()), ids, token, 1)[token]

    def _scores(self, job: Job, ids: list[int], token: int, top: int) -> dict[int, float]:
        """Log-probabilities by token behind `ids`: the given one's and the `top` likeliest."""
        # A bias makes llama.cpp choose a token; the probabilities that it reports are those before any bias.
        found = self._likeliest(job, ids, token, max(top, 1))
        if (
            not found
        ):  # where a token ends within a character it reports nothing: choose another, list them all
            found = self._likeliest(job, ids, self._tokenizer.eos_token_id, len(self._tokenizer))
        return found

    def _likeliest(self, job: Job, ids: list[int], chosen: int, top: int) -> dict[int, float]:
        plain = job.sampling.model_copy(update={"temperature": 0, "repetition_penalty": 1})
        body = self._body(replace(job, prompt=ids, max_new_tokens=1, sampling=plain))
        reply = self._server.handle_completions(body | {"logprobs": top, "logit_bias": [[chosen, 1e6]]})
        found = reply["choices"][0]["logprobs"]
        if not found:
            return {}
        (place,) = found["content"]
        return {entry["id"]: entry["logprob"] for entry in [*place["top_logprobs"], place]}

    def _alone(self, job: Job) -> Iterator[Piece]:
        chunks: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        stopped = threading.Event()

        def received(chunk: dict[str, Any]) -> bool:
            chunks.put(chunk)
            return stopped.is_set()  # True ends the generation

        def run() -> None:
            try:
                self._server.handle_completions(self._body(job) | {"stream": True}, received)
            finally:
                chunks.put(None)

        worker = threading.Thread(target=run, name="llama.cpp", daemon=True)
        worker.start()
        said = ""
        try:
            for piece in _pieces(chunks):
                said += piece.text
                yield piece
        finally:
            stopped.set()
            worker.join()
            # The answer's tokens, as the next turn's prompt will most often write them. Where it writes them in another
            # way, llama.cpp finds the difference, and reads at most an answer more at a time.
            self._held[job.model] = job.prompt + self._tokenizer.encode(said, add_special_tokens=False)

    def _body(self, job: Job) -> dict[str, Any]:
        """llama.cpp's fields, those that it would otherwise decide included (it defaults to top_k 40, min_p 0.05)."""
        return {
            "prompt": job.prompt,
            "id_slot": self._models.index(job.model),
            "lora": [
                {"id": place, "scale": job.sampling.adapter_strength if name == job.model else 0.0}
                for place, name in enumerate(self._models[1:])
            ],
            "max_tokens": job.max_new_tokens,
            # The best token needs no sorted vocabulary, a tenth of the time with a small model.
            **(
                {"samplers": ["penalties", "top_k"], "top_k": 1}
                if job.sampling.temperature == 0
                else {
                    "samplers": ["penalties", "temperature", "top_k", "top_p", "min_p"],
                    "top_k": job.sampling.top_k,
                    "min_p": job.sampling.min_p,
                    "temperature": job.sampling.temperature,
                    "top_p": job.sampling.top_p,
                }
            ),
            "repeat_penalty": job.sampling.repetition_penalty,
            "repeat_last_n": CONTEXT_TOKENS,  # the whole conversation, as transformers counts it
            "seed": (job.sampling.seed or 0) % SEEDS,
            "cache_prompt": True,
            "timings_per_token": True,
        }


def shared_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _pieces(chunks: queue.SimpleQueue[dict[str, Any] | None]) -> Iterator[Piece]:
    n_tokens, finish = 0, None
    while (chunk := chunks.get()) is not None:
        if "choices" not in chunk:
            raise RuntimeError(f"llama.cpp: {chunk}")
        n_tokens = chunk.get("timings", {}).get("predicted_n", n_tokens)
        for choice in chunk["choices"]:
            finish = choice.get("finish_reason") or finish
            if choice.get("text"):
                yield Piece(0, choice["text"], n_tokens)
    if finish is None:
        raise RuntimeError("llama.cpp ended without a finish reason")
    yield Piece(0, "", n_tokens, "stop" if finish == "stop" else "length")
