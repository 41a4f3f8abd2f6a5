"""transformers + PEFT: for a GPU, for a base without a GGUF, and what llama.cpp's answers are checked against.

The decoding loop is ours, one step per iteration. So closing the iterator stops at once, a batch may hold a
different adapter per row, each row draws from a random generator of its own, and there is no thread that a
failure could leave hanging (transformers' TextIteratorStreamer blocks for ever if generation raises).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from abctune.core.errors import UserError
from abctune.core.params import BASE
from abctune.llm.inference import load_for_inference
from abctune.llm.tokenizer import stop_token_ids
from app.engines import Job, Piece
from app.engines.streaming import StreamingAnswer
from app.request import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPT_PART = 256  # prompt tokens per forward pass, so that `stop` takes effect during a long prompt


class BrokenAdapter(UserError):
    """An adapter that PEFT cannot put on the base."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(reason)
        self.name = name


class TransformersEngine:
    """The base model with every adapter on it; which one applies is said row by row."""

    name = "transformers"

    def __init__(
        self,
        base: Path,
        adapters: Mapping[str, Path],
        tokenizer: PreTrainedTokenizerBase,
        context: int,
        dtype: torch.dtype,
    ) -> None:
        from peft import PeftModel

        self._tokenizer, self._stops = tokenizer, stop_token_ids(tokenizer)
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

    def stream(self, jobs: Sequence[Job]) -> Iterator[Piece]:
        """All jobs in one batch."""
        rows = [_Row(job, random=torch.Generator().manual_seed(job.sampling.seed or 0)) for job in jobs]
        width = max(len(job.prompt) for job in jobs)
        # Padding goes in front, so that every prompt ends where generation begins.
        pad = self._tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(job.prompt)) + job.prompt for job in jobs])
        mask = torch.tensor([[0] * (width - len(job.prompt)) + [1] * len(job.prompt) for job in jobs])
        yield from (Piece(index, "", 0) for index in range(len(jobs)))
        cache = None
        for start in range(0, width, PROMPT_PART):
            part = slice(start, min(start + PROMPT_PART, width))
            logits, cache = self._forward(jobs, ids[:, part], mask[:, : part.stop], cache)
            yield Piece(0, "", 0)
        while True:
            chosen = [row.choose(scores) for row, scores in zip(rows, logits, strict=True)]
            for index, (row, token) in enumerate(zip(rows, chosen, strict=True)):
                if row.finish:
                    continue
                if piece := row.take(index, token, self._tokenizer, token in self._stops):
                    yield piece
            if all(row.finish for row in rows):
                return
            mask = torch.cat([mask, torch.ones(len(rows), 1, dtype=mask.dtype)], dim=1)
            logits, cache = self._forward(jobs, torch.tensor(chosen).unsqueeze(1), mask, cache)

    @torch.inference_mode()
    def _forward(self, jobs: Sequence[Job], ids: torch.Tensor, mask: torch.Tensor, cache: object) -> tuple:
        """The next-token scores of each row, and the cache that now holds `ids` too."""
        position = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        names = {"adapter_names": [_adapter(job.model) for job in jobs]} if self._has_adapters else {}
        output = self._model(
            input_ids=ids.to(self._model.device),
            attention_mask=mask.to(self._model.device),
            position_ids=position.to(self._model.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **names,
        )
        return output.logits[:, -1].float().cpu(), output.past_key_values


def _adapter(model: str) -> str:
    return "__base__" if model == BASE else model


@dataclass
class _Row(StreamingAnswer):
    """One row of the batch."""

    random: torch.Generator = field(default_factory=torch.Generator)

    def choose(self, scores: torch.Tensor) -> int:
        """The next token's id; a finished row goes on with padding's id 0, which nobody reads."""
        if self.finish:
            return 0
        return next_token(scores, self.job.prompt + self.ids, self.job.sampling, self.random)


def next_token(scores: torch.Tensor, seen: list[int], sampling: Sampling, random: torch.Generator) -> int:
    """Repetition penalty, temperature and top-p in transformers' order, then a draw."""
    if sampling.repetition_penalty != 1:
        index = torch.tensor(sorted(set(seen)))
        known = scores[index]
        penalised = torch.where(
            known > 0, known / sampling.repetition_penalty, known * sampling.repetition_penalty
        )
        scores = scores.index_copy(0, index, penalised)
    if sampling.temperature == 0:
        return int(scores.argmax())
    probabilities, order = (scores / sampling.temperature).softmax(dim=0).sort(descending=True)
    # Keep the fewest tokens whose probabilities reach top_p; the likeliest always stays.
    probabilities[probabilities.cumsum(dim=0) - probabilities > sampling.top_p] = 0
    if sampling.top_k:
        probabilities[sampling.top_k :] = 0
    probabilities[probabilities < sampling.min_p * probabilities[0]] = 0
    return int(order[torch.multinomial(probabilities, 1, generator=random)])
