"""transformers + PEFT: for a GPU, for a base without a GGUF, and what llama.cpp's answers are checked against.

The decoding loop is ours, one step per iteration. So closing the iterator stops at once, a batch may hold a
different adapter per row, each row draws from a random generator of its own, and there is no thread that a
failure could leave hanging (transformers' TextIteratorStreamer blocks for ever if generation raises).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from abctune.core.errors import UserError
from abctune.core.params import BASE
from abctune.llm.inference import load_for_inference
from abctune.llm.stops import stop_token_ids
from app.engines import Job, Likely, Piece, TokenScore
from app.engines.streaming import StreamingAnswer
from app.request import Sampling
from app.thoughts import shown_marks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPT_CHUNK = 256  # prompt tokens per forward pass, so that `stop` takes effect during a long prompt


class BrokenAdapter(UserError):
    """An adapter that PEFT cannot put on the base."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(reason)
        self.name = name


class TransformersEngine:
    """The base model with every adapter loaded; each row of a batch names the one that applies to it."""

    name = "transformers"
    n_parallel = 1
    grammars = False

    def __init__(
        self,
        base: Path,
        adapters: Mapping[str, Path],
        tokenizer: PreTrainedTokenizerBase,
        context: int,
        dtype: torch.dtype,
    ) -> None:
        from peft import PeftModel

        self.tokenizer, self._stops = tokenizer, stop_token_ids(tokenizer)
        self._marks = shown_marks(tokenizer, self._stops)
        self.context = context
        model = load_for_inference(dtype, base=base)
        try:
            for name, path in adapters.items():
                if isinstance(model, PeftModel):
                    model.load_adapter(path, adapter_name=name)
                else:
                    model = PeftModel.from_pretrained(model, path, adapter_name=name)
        except (RuntimeError, ValueError) as error:
            reason = (
                f"{path} does not load on {base} ({str(error).splitlines()[0]}); `dvc repro train@{name}`"
            )
            raise BrokenAdapter(name, reason) from None
        self._model, self._has_adapters = model.eval(), bool(adapters)
        self._mixes = not adapters or self._takes_several_adapters()
        self._strength: dict[str, float] = {}

    @torch.inference_mode()
    def _takes_several_adapters(self) -> bool:
        """Whether one batch may hold rows of several adapters, which PEFT chooses by a layer's first dimension.

        Not on stacked experts (Qwen3-MoE), nor with DoRA, nor where a layer gets all rows' tokens as one list (Llama 4):
        then each adapter takes a batch of its own.
        """
        layers = [layer for layer in self._model.modules() if isinstance(layer, LoraLayer)]
        if any(isinstance(layer, ParamWrapper) or any(layer.use_dora.values()) for layer in layers):
            return False
        rows: set[int] = set()
        hooks = [
            layer.register_forward_pre_hook(lambda _, given: rows.add(given[0].shape[0])) for layer in layers
        ]
        self._model(input_ids=torch.zeros(2, 3, dtype=torch.long, device=self._model.device))
        for hook in hooks:
            hook.remove()
        return rows <= {2}

    def stream(self, jobs: Sequence[Job]) -> Generator[Piece]:
        """All jobs in one batch; an adapter that is asked for at two strengths takes a batch for each."""
        strengths: list[dict[str, float]] = []
        batches: list[list[int]] = []
        for index, job in enumerate(jobs):
            strength = job.sampling.adapter_strength
            fitting = (
                n
                for n, known in enumerate(strengths)
                if known.get(job.model, strength) == strength and (self._mixes or job.model in known)
            )
            place = next(fitting, len(batches))
            if place == len(batches):
                strengths.append({})
                batches.append([])
            strengths[place][job.model] = strength
            batches[place].append(index)
        for batch in batches:
            for piece in self._batch([jobs[index] for index in batch]):
                yield replace(piece, index=batch[piece.index])

    def score(self, job: Job, ids: Sequence[int], likeliest: int) -> Iterator[TokenScore]:
        """Each token of `ids` after the job's prompt."""
        cache = None
        for place in range(-1, len(ids) - 1):
            read = [ids[place]] if place >= 0 else job.prompt
            mask = torch.ones(1, len(job.prompt) + place + 1, dtype=torch.long)
            logits, cache = self._forward([job], torch.tensor([read]), mask, cache)
            yield self._score(logits[0], ids[place + 1], likeliest)

    def _score(self, scores: torch.Tensor, token: int, likeliest: int) -> TokenScore:
        """Of the plain scores, float (vocabulary)."""
        text, logprobs = self.tokenizer.decode, scores.log_softmax(dim=0)
        best = logprobs.topk(likeliest)
        pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        alternatives = tuple(Likely(one, text([one]), score) for score, one in pairs)
        return TokenScore(token, text([token]), float(logprobs[token]), alternatives)

    def _batch(self, jobs: Sequence[Job]) -> Iterator[Piece]:
        rows = [_Row(job, random=torch.Generator().manual_seed(job.sampling.seed or 0)) for job in jobs]
        width = max(len(job.prompt) for job in jobs)
        # Padding goes in front, so that every prompt ends where generation begins.
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(job.prompt)) + job.prompt for job in jobs])
        mask = torch.tensor([[0] * (width - len(job.prompt)) + [1] * len(job.prompt) for job in jobs])
        yield from (Piece(index, "", 0) for index in range(len(jobs)))
        cache = None
        for start in range(0, width, PROMPT_CHUNK):
            part = slice(start, min(start + PROMPT_CHUNK, width))
            logits, cache = self._forward(jobs, ids[:, part], mask[:, : part.stop], cache)
            yield Piece(0, "", 0)
        while True:
            chosen = [row.choose(scores) for row, scores in zip(rows, logits, strict=True)]
            for index, (row, token) in enumerate(zip(rows, chosen, strict=True)):
                if row.finish:
                    continue
                if row.job.likeliest is not None and token not in self._stops:
                    row.scores += (self._score(logits[index], token, row.job.likeliest),)
                shown = self._marks.get(token)
                if piece := row.take(index, token, self.tokenizer, token in self._stops, shown):
                    yield replace(piece, scores=row.scores, shared=len(jobs) > 1)
                    row.scores = ()
            if all(row.finish for row in rows):
                return
            mask = torch.cat([mask, torch.ones(len(rows), 1, dtype=mask.dtype)], dim=1)
            logits, cache = self._forward(jobs, torch.tensor(chosen).unsqueeze(1), mask, cache)

    @torch.inference_mode()
    def _forward(self, jobs: Sequence[Job], ids: torch.Tensor, mask: torch.Tensor, cache: object) -> tuple:
        """The next-token scores of each row, and the cache that now holds `ids` too."""
        position = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        names = {"adapter_names": ["__base__" if _applied(job) == BASE else job.model for job in jobs]}
        self._scale({job.model: job.sampling.adapter_strength for job in jobs if job.model != BASE})
        with self._alone(_applied(jobs[0])):
            output = self._model(
                input_ids=ids.to(self._model.device),
                attention_mask=mask.to(self._model.device),
                position_ids=position.to(self._model.device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
                **names if self._mixes and self._has_adapters else {},
            )
        return output.logits[:, -1].float().cpu(), output.past_key_values

    def _alone(self, name: str) -> AbstractContextManager[None]:
        """Switch one adapter on, or none for the base, where a batch does not name its rows' adapters."""
        if self._mixes or not self._has_adapters:
            return nullcontext()
        if name == BASE:
            off: AbstractContextManager[None] = self._model.disable_adapter()
            return off
        self._model.set_adapter(name)
        return nullcontext()

    def _scale(self, strengths: Mapping[str, float]) -> None:
        """Multiply each adapter's effect, as PEFT's `set_scale` does for the active adapter alone."""
        for name, strength in strengths.items():
            if self._strength.get(name, 1.0) != strength:
                for layer in self._model.modules():
                    if isinstance(layer, LoraLayer) and name in layer.scaling:
                        layer.set_scale(name, strength)
                self._strength[name] = strength


def _applied(job: Job) -> str:
    """The job's model, or the base at strength 0, where DoRA's magnitudes alone would still change it."""
    return job.model if job.sampling.adapter_strength else BASE


@dataclass
class _Row(StreamingAnswer):
    """One row of the batch."""

    random: torch.Generator = field(default_factory=torch.Generator)
    scores: tuple[TokenScore, ...] = ()  # not handed out yet

    def choose(self, scores: torch.Tensor) -> int:
        """The next token's id; a finished row goes on with padding's id 0, which nobody reads."""
        if self.finish:
            return 0
        return next_token(scores, self.job.prompt + self.ids, self.job.sampling, self.random)


def next_token(scores: torch.Tensor, seen: list[int], sampling: Sampling, random: torch.Generator) -> int:
    """The next token's id: transformers' processors in the order of its `generate`, then a draw.

    Args:
        scores: float (vocabulary).
        seen: ids of the prompt and of the answer so far, whose repetition is penalized.
    """
    if chain := _processors(sampling):
        scores = chain(torch.tensor([seen], dtype=torch.long), scores[None])[0]
    if sampling.temperature == 0:
        return int(scores.argmax())
    kept = scores.isfinite().nonzero()[:, 0]
    probabilities, order = scores[kept].softmax(dim=0).sort(descending=True)
    return int(kept[order[torch.multinomial(probabilities, 1, generator=random)]])


@lru_cache(maxsize=64)  # as many answers as are written at once, and more
def _processors(sampling: Sampling) -> LogitsProcessorList:
    """What changes the scores before a draw, those that would change nothing left out."""
    chain = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        chain.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature == 0:
        return chain
    chain.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        chain.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        chain.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        chain.append(MinPLogitsWarper(sampling.min_p))
    return chain
