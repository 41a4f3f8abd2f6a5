"""llama.cpp, inside this process: the base as GGUF, every adapter loaded once and switched on per request.

Several answers at a time: each has a slot of llama.cpp's until it ends, and runs in slices of a few tokens
(app.engines.scheduler). Slices of one adapter at one strength are one batch to llama.cpp.

A slot keeps what it has read of a conversation, so that the next turn costs its new tokens. What a model has read is no
use to another: llama.cpp forgets it when a slot's adapter changes, and we look for a slot by model and strength.
llama.cpp computes slots as one batch only if their numbers follow one another, so concurrent answers get such
slots: four answers in slots 0 to 3 came at 85 tokens/s, in slots 0, 2, 4 and 6 at 65.

A greedy answer does not depend on what was asked before: PROMPT_CHUNK and the form of the adapters (app.engines.lora_gguf)
make llama.cpp compute a token's scores alike, whether the tokens before it were read one by one or together. It may
depend, in a near tie, on answers by the same adapter that are written at the same time; `Piece.shared` says so.
"""

from __future__ import annotations

import math
import queue
import secrets
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abctune.core.errors import UserError
from abctune.core.params import BASE
from abctune.llm.stops import stop_token_ids
from app.engines import Job, Likely, Piece, TokenScore
from app.engines.scheduler import Canceled, Scheduler
from app.request import CONTEXT_TOKENS, Refused, Sampling
from app.thoughts import shown_marks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Slots, so answers at a time and conversations that are remembered. One of 2,048 tokens takes 47 MB with
# SmolLM2-135M and 235 MB with Llama-3.2-3B.
N_PARALLEL = 8
# Tokens of an answer before the scheduler is asked again whose turn it is: a fifth of a second with SmolLM2-135M on two cores. A
# greedy answer asks more often at its beginning, so that a comparison's first words come together.
SLICE = 16
GREEDY_SLICES = {0: 1, 8: 4, 16: SLICE}
# Where several answers are written, each cut costs about one step of the batch, so a sampled answer, which always has
# all its cuts, gets a short slice, by which the first words of all come soon, and long ones.
SAMPLED_SLICES = {0: 2, 2: 46}
# The same for a prompt. From 64 tokens of a slot on llama.cpp's attention sums in another order, and then scores would
# depend on how much of a prompt has been read already (measured: by up to 0.2 nats).
PROMPT_CHUNK = 63
# That llama.cpp computes together: of four slots whose prompts are read at the same time.
BATCH_TOKENS = 4 * PROMPT_CHUNK
SEEDS = 2**32 - 1  # the largest unsigned seed means "draw one" to llama.cpp
# Between two pieces of all answers together: of four that are written, each shows new words every fifth of a second. Each piece
# wakes three threads, to which llama.cpp's own give way.
PIECE_SECONDS = 0.05
# So much of a prompt that a slot has read is worth more than a place next to other answers by the same adapter.
WORTH_A_BATCH = 256
CHARACTER_TOKENS = 4  # UTF-8 writes a character in at most four bytes, so a tokenizer in at most four tokens

Group = tuple[str, float]  # a model and its adapter's strength


def n_parallel_for(models: int) -> int:
    """How many answers are generated at a time, with so many models: a comparison of all of them must fit."""
    return max(N_PARALLEL, models)


@dataclass
class _Slot:
    """One of llama.cpp's slots, and the tokens in its cache, which llama.cpp itself does not report."""

    id: int
    group: Group | None = None
    cached: list[int] = field(default_factory=list)
    empty: bool = True  # nothing in it was computed for this group
    used: int = 0  # when, by a count of uses
    busy: bool = False


class LlamaCpp:
    """One llama.cpp server object; `xllamacpp` runs it in threads of this process."""

    name = "llama.cpp"
    grammars = True

    def __init__(
        self,
        base: Path,
        adapters: Mapping[str, Path],
        tokenizer: PreTrainedTokenizerBase,
        context: int,
        threads: int,
    ) -> None:
        import xllamacpp

        self.context, self.tokenizer, self._stops = context, tokenizer, stop_token_ids(tokenizer)
        self._marks = shown_marks(tokenizer, self._stops)
        self._models = [BASE, *adapters]
        self.n_parallel = n_parallel_for(len(self._models))
        self._slots, self._uses = [_Slot(place) for place in range(self.n_parallel)], 0
        self._free = threading.Condition()
        self._texts: dict[int, str] = {}  # of single tokens, at most the vocabulary
        self._scheduler = Scheduler()

        params = xllamacpp.CommonParams()
        params.model.path = str(base)
        params.n_parallel = self.n_parallel
        params.n_ctx = context * params.n_parallel
        params.n_batch = params.n_ubatch = BATCH_TOKENS
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(path), 0.0) for path in adapters.values()]
        params.offline = True
        params.cache_ram_mib = 0  # no second copy of past prompts: memory must not increase with use
        params.verbosity = -1
        # xllamacpp also opens llama.cpp's own HTTP server on a free loopback port. Nothing uses it, so its key is random
        # and kept nowhere.
        params.api_keys = [secrets.token_hex(32)]
        params.endpoint_slots = params.endpoint_props = params.endpoint_metrics = False
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError as error:
            raise UserError(
                f"llama.cpp does not load {base} with {', '.join(adapters) or 'no adapter'} ({error}); use --engine "
                "transformers"
            ) from None

    # --- what the service calls

    def stream(self, jobs: Sequence[Job]) -> Generator[Piece]:
        """All jobs at a time, a thread each; those of one adapter as one batch, adapters in turns."""
        pieces: queue.SimpleQueue[Piece | BaseException | None] = queue.SimpleQueue()
        canceled, compared = threading.Event(), len({_group(job) for job in jobs}) > 1
        workers = [
            threading.Thread(
                target=self._work,
                args=(_Generation(index, job, pieces, canceled, compared),),
                name="llama.cpp",
                daemon=True,
            )
            for index, job in enumerate(jobs)
        ]
        for worker in workers:
            worker.start()
        running = len(workers)
        try:
            while running:
                piece = pieces.get()
                if piece is None:
                    running -= 1
                elif isinstance(piece, BaseException):
                    raise piece
                else:
                    yield piece
        finally:
            canceled.set()
            self._scheduler.wake()
            for worker in workers:
                worker.join()

    def score(self, job: Job, ids: Sequence[int], likeliest: int) -> Iterator[TokenScore]:
        """Each token of `ids` after the job's prompt; costs what generating them costs."""
        canceled = threading.Event()
        with self._slot(job) as slot:
            self._read(slot, job, canceled)
            for place, token in enumerate(ids):
                read = [*job.prompt, *ids[:place]]
                with self._scheduler.take(_group(job), canceled):
                    scores = self._scores(job, slot, read, token, likeliest)
                order = sorted(scores, key=scores.__getitem__, reverse=True)[:likeliest]
                yield TokenScore(
                    *self._named(token, scores[token]),
                    tuple(Likely(*self._named(one, scores[one])) for one in order),
                )

    def log_probability(self, model: str, ids: list[int], token: int) -> float:
        """Natural logarithm of the probability that the model gives the token after `ids`, by its plain scores."""
        job = Job(model, ids, 1, Sampling())
        with self._slot(job) as slot:
            self._read(slot, job, threading.Event())
            return self._scores(job, slot, ids, token, 1)[token]

    # --- one answer

    def _work(self, answer: _Generation) -> None:
        """Generate one answer into its queue, with None after the last piece."""
        try:
            with self._slot(answer.job) as slot:
                self._answer(answer, slot)
        except Canceled:
            pass
        except Exception as error:  # raised where the pieces are read
            answer.put()  # what was written until then
            answer.pieces.put(error)
        finally:
            answer.pieces.put(None)

    def _answer(self, answer: _Generation, slot: _Slot) -> None:
        job = answer.job
        answer.cached_tokens = min(shared_prefix(slot.cached, job.prompt), len(job.prompt) - 1)
        answer.put()  # it begins
        self._read(slot, job, answer.canceled)
        stuck = 0  # slices that brought nothing, as they ended within a character
        while answer.finish is None:
            before, remaining = answer.n_tokens, job.max_new_tokens - answer.n_tokens
            with self._scheduler.take(_group(job), answer.canceled) as turn:
                if job.grammar is not None or self._needs_no_cut(
                    answer
                ):  # llama.cpp cannot go on within a grammar
                    size = remaining
                else:
                    size = slice_size(before, _is_greedy(job)) + stuck * CHARACTER_TOKENS
                finish = self._slice(slot, answer, turn, min(size, remaining))
            stuck = stuck + 1 if answer.n_tokens == before else 0
            if finish == "stop" or answer.n_tokens >= job.max_new_tokens or stuck > 1:
                answer.finish = "stop" if finish == "stop" else "length"
        answer.put()

    def _needs_no_cut(self, answer: _Generation) -> bool:
        """Whether an answer need not be cut into slices for now: no other adapter waits, and cuts change no word.

        A sampled answer is always cut at the same places, where it gets a new seed, or it would depend on who else asks.
        """
        alone = not answer.compared and not self._scheduler.others_wait(_group(answer.job))
        return _is_greedy(answer.job) and alone

    def _read(self, slot: _Slot, job: Job, canceled: threading.Event) -> None:
        """Let the slot read all but the last part of the prompt, from where it differs from what the slot holds.

        A shorter prompt would make llama.cpp cut the slot back to it and read the rest again.
        """
        known = shared_prefix(slot.cached, job.prompt)
        for end in range(known + PROMPT_CHUNK, len(job.prompt), PROMPT_CHUNK):
            with self._scheduler.take(_group(job), canceled):
                self._call(slot, job, job.prompt[:end], canceled, max_tokens=0)

    def _slice(self, slot: _Slot, answer: _Generation, turn: Any, tokens: int) -> str | None:
        """Generate some tokens; the reason why llama.cpp ended."""
        job = answer.job
        options: dict[str, Any] = {
            "max_tokens": tokens,
            # A seed per slice, the same one for every model.
            "seed": ((job.sampling.seed or 0) + 0x9E3779B9 * answer.n_tokens) % SEEDS,
            # The only field with tokens' ids. After sampling: few tokens are left to sort.
            "logprobs": max(job.likeliest or 0, 1),
            "post_sampling_probs": job.likeliest is None,
        }
        if job.grammar is not None:
            options["grammar"] = job.grammar

        def received(chunk: dict[str, Any]) -> bool:
            """Take one chunk of llama.cpp's; True ends the call, so that others get their turn."""
            (choice,) = chunk["choices"]
            text, found = choice["text"], (choice.get("logprobs") or {}).get("content") or []
            ids = [entry["id"] for entry in found]
            if text and self._text(ids) != text:  # of a character's tokens llama.cpp names the last
                ids = self.tokenizer.encode(text, add_special_tokens=False)
            scores = () if job.likeliest is None else tuple(_score(entry, job.likeliest) for entry in found)
            if ids and not text:  # a special token
                text = self._marks.get(ids[0], "")
            if ids and (text or ids[0] not in self._stops):
                n_busy = sum(slot.busy for slot in self._slots)
                pause = 0 if job.by_token else PIECE_SECONDS * n_busy
                answer.add(text, ids, scores, turn.shared, pause)
            waited_for = _is_greedy(job) and job.grammar is None and self._scheduler.others_wait(_group(job))
            return waited_for and tokens > SLICE and bool(ids)  # shorter ones end soon anyway

        finish = self._call(slot, job, job.prompt + answer.ids, answer.canceled, received, **options)
        slot.cached = job.prompt + answer.ids
        if answer.pending:
            answer.put()
        return finish

    def _call(
        self,
        slot: _Slot,
        job: Job,
        prompt: list[int],
        canceled: threading.Event,
        received: Any = None,
        **options: Any,
    ) -> str | None:
        """One call of llama.cpp, which ends early when nobody wants the answer; the reason why it ended."""
        finish, failure, enough = None, None, False

        def take(chunk: dict[str, Any]) -> bool:
            """Note how a chunk says that the call ended; True ends it."""
            nonlocal finish, failure, enough
            if "choices" not in chunk:
                failure = chunk
                return True
            finish = chunk["choices"][0].get("finish_reason") or finish
            if received is not None:
                enough = received(chunk)
            return canceled.is_set() or enough  # True ends the generation

        body = self._body(slot, job) | {"prompt": prompt, "stream": True, "return_progress": True} | options
        self._server.handle_completions(body, take)
        slot.empty, slot.cached = False, prompt
        if failure is not None and job.grammar is not None:
            raise Refused(
                "llama.cpp does not take this grammar; docs/app.md says where its form is described"
            )
        if failure is not None:
            raise RuntimeError(f"llama.cpp: {failure}")
        if finish is None and not canceled.is_set() and not enough:
            raise RuntimeError("llama.cpp ended without a finish reason")
        if canceled.is_set():
            raise Canceled
        return finish

    # --- scores

    def _scores(self, job: Job, slot: _Slot, ids: list[int], token: int, top: int) -> dict[int, float]:
        """Log-probabilities by token after `ids`: the given one's and the `top` likeliest."""
        # A bias makes llama.cpp choose a token; the probabilities that it reports are those before any bias.
        found = self._likeliest(job, slot, ids, token, max(top, 1))
        if (
            not found
        ):  # where a token ends within a character it reports nothing: choose another, list them all
            found = self._likeliest(job, slot, ids, self.tokenizer.eos_token_id, len(self.tokenizer))
        return found

    def _likeliest(self, job: Job, slot: _Slot, ids: list[int], chosen: int, top: int) -> dict[int, float]:
        plain = job.sampling.model_copy(update={"temperature": 0, "repetition_penalty": 1})
        body = self._body(slot, replace(job, sampling=plain))
        options = {"prompt": ids, "max_tokens": 1, "logprobs": top, "logit_bias": [[chosen, 1e6]]}
        reply = self._server.handle_completions(body | options)
        slot.empty, slot.cached = False, ids
        found = reply["choices"][0]["logprobs"]
        if not found:
            return {}
        (place,) = found["content"]
        return {entry["id"]: entry["logprob"] for entry in [*place["top_logprobs"], place]}

    def _text(self, ids: Sequence[int]) -> str:
        if len(ids) != 1:
            return self.tokenizer.decode(ids)
        # Nearly all calls are for one token; decoding it takes a sixth of what Python does per token.
        if ids[0] not in self._texts:
            self._texts[ids[0]] = self.tokenizer.decode(ids)
        return self._texts[ids[0]]

    def _named(self, token: int, logprob: float) -> tuple[int, str, float]:
        return token, self._text([token]), logprob

    # --- slots

    @contextmanager
    def _slot(self, job: Job) -> Iterator[_Slot]:
        """A free slot for the job.

        The best one holds much of its prompt; else it is next to its model's other answers; else apart from other models'
        answers; else it holds some of the prompt; else it was used longest ago.
        """
        with self._free:
            self._free.wait_for(lambda: any(not slot.busy for slot in self._slots))
            free = sorted((slot for slot in self._slots if not slot.busy), key=lambda slot: slot.used)
            group, old = _group(job), free[: (len(free) + 1) // 2]
            best = max(free, key=lambda slot: self._worth(slot, group, job.prompt, slot in old))
            self._uses += 1
            best.busy, best.used = True, self._uses
            if best.group != group:
                best.group, best.cached, best.empty = group, [], True
        try:
            yield best
        finally:
            with self._free:
                best.busy = False
                self._free.notify()

    def _worth(
        self, slot: _Slot, group: Group, prompt: list[int], is_old: bool
    ) -> tuple[int, bool, bool, int, int]:
        known = shared_prefix(slot.cached, prompt) if slot.group == group else 0
        # The same conversation, or a question of it again. A system message that two conversations share is worth the slot
        # of one that would soon be forgotten anyway.
        useful = known if known == len(prompt) or 2 * known > len(slot.cached) or is_old else 0
        neighbors = [one for one in self._slots if one.busy and abs(one.id - slot.id) == 1]
        makes_a_batch = any(one.group == group for one in neighbors)
        # For another answer next to one that is being written.
        apart_from_others = all(one.group == group for one in neighbors)
        long = useful if useful >= WORTH_A_BATCH else 0
        return long, makes_a_batch, apart_from_others, useful, -slot.used

    def _body(self, slot: _Slot, job: Job) -> dict[str, Any]:
        """llama.cpp's fields, those that it would otherwise decide included (it defaults to top_k 40, min_p 0.05)."""
        return {
            "id_slot": slot.id,
            "lora": [
                {"id": place, "scale": job.sampling.adapter_strength if name == job.model else 0.0}
                for place, name in enumerate(self._models[1:])
            ],
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
            "cache_prompt": not slot.empty,
        }


@dataclass
class _Generation:
    """One answer while it is generated."""

    index: int
    job: Job
    pieces: queue.SimpleQueue
    canceled: threading.Event
    compared: bool  # with answers by other adapters, which are shown side by side as they are written
    ids: list[int] = field(default_factory=list)
    finish: Any = None
    shared: bool = False
    cached_tokens: int = 0
    pending: str = ""  # since the last piece, as are the scores
    pending_scores: tuple[TokenScore, ...] = ()
    _handed: float = -math.inf  # when the last piece with text went to the reader

    @property
    def n_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.ids)

    def add(
        self, text: str, ids: list[int], scores: tuple[TokenScore, ...], shared: bool, pause: float
    ) -> None:
        """Add what was generated; the first words go to the reader at once, later ones `pause` seconds after others."""
        self.ids += ids
        self.shared |= shared
        self.pending += text
        self.pending_scores += scores
        if time.monotonic() - self._handed >= pause:
            self.put()

    def put(self) -> None:
        """Hand the reader what was generated since the last piece, and the answer's present state."""
        self.pieces.put(
            Piece(
                self.index,
                self.pending,
                self.n_tokens,
                self.finish,
                self.pending_scores,
                self.shared,
                self.cached_tokens,
            )
        )
        if self.pending:
            self._handed = time.monotonic()
        self.pending, self.pending_scores = "", ()


def _group(job: Job) -> Group:
    return job.model, 1.0 if job.model == BASE else job.sampling.adapter_strength


def _is_greedy(job: Job) -> bool:
    return job.sampling.temperature == 0


def _score(entry: dict[str, Any], likeliest: int) -> TokenScore:
    best = entry["top_logprobs"][:likeliest]
    alternatives = tuple(Likely(one["id"], one["token"], one["logprob"]) for one in best)
    return TokenScore(entry["id"], entry["token"], entry["logprob"], alternatives)


def slice_size(n_tokens: int, greedy: bool) -> int:
    """How many tokens come next, when an answer has `n_tokens`: up to the next place where all such answers end a slice."""
    steps = GREEDY_SLICES if greedy else SAMPLED_SLICES
    start, step = next((start, step) for start, step in reversed(steps.items()) if n_tokens >= start)
    return step - (n_tokens - start) % step


def shared_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
