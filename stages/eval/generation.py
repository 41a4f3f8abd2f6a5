"""Greedy answers to the fixed prompts, and measures of their form: whether they end, their length, repetition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from abctune.core.records import Generation, SampleRecord
from abctune.llm.conversation import Message, Tools
from abctune.llm.inference import Answer, cached, generate
from abctune.llm.likelihood import cores_for, on_cores
from abctune.llm.prompts import PROMPTS

NGRAM = 3
# Answers of a batch where there is no GPU; batches share the cores. A fixed number, since how answers are padded can move
# a last bit, and a rerun should give the same answers however much memory other programs leave. Tiny asks 24: two batches.
CPU_ROWS = 12
# On a GPU a step for 130 answers takes hardly longer than one for 32, so as many are generated at once as this share of
# the card's memory holds, what the model takes left out. The rest is for what is not counted.
GPU_SHARE = 0.6
MAX_PROMPT = (
    1024  # tokens that a prompt is taken to have: the project's own are under 100, rows of code some hundred
)


def repetition(token_ids: Sequence[int]) -> float:
    """Share of an answer's token 3-grams that occurred in it before: 0 is all new, near 1 a loop.

    1 - distinct-3 of Li et al. (2016), "A Diversity-Promoting Objective Function for Neural Conversation Models".
    """
    grams = [tuple(token_ids[start : start + NGRAM]) for start in range(len(token_ids) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def answer_all(model: Any, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int) -> list[Answer]:
    """Greedy answers to prompts of one message each, in the order given.

    All that a model is asked goes in here at once, so that batches are full.
    """
    asked = [([Message(role="user", content=prompt)], None) for prompt in prompts]
    return answer_conversations(model, tokenizer, asked, max_new_tokens)


def answer_conversations(
    model: Any,
    tokenizer: Any,
    asked: Sequence[tuple[Sequence[Message], Tools | None]],
    max_new_tokens: int,
) -> list[Answer]:
    """Greedy answers to conversations that each await a reply, with the tools they may call, in the order given."""
    # Prompts of like length together, so that little of a batch is padding.
    sizes = [sum(len(message["content"]) for message in messages) for messages, _ in asked]
    order = sorted(range(len(asked)), key=sizes.__getitem__)
    rows = rows_at_once(model, MAX_PROMPT + max_new_tokens)
    batches = [order[start : start + rows] for start in range(0, len(order), rows)]

    def answered(batch: list[int]) -> list[Answer]:
        conversations, tools = zip(*(asked[i] for i in batch), strict=True)
        return generate(model, tokenizer, conversations, max_new_tokens, tools)

    with cached(model):  # for all of them: the first to end must not switch the cache off for the others
        found = on_cores(answered, batches, cores_for(model))
    answers = {
        i: answer
        for batch, part in zip(batches, found, strict=True)
        for i, answer in zip(batch, part, strict=True)
    }
    return [answers[i] for i in range(len(asked))]


def bytes_of_answer(model: Any, tokens: int) -> int:
    """Memory that one conversation of so many tokens takes: its key-value cache, and one layer's widest activations."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    cached = (
        2 * config.num_hidden_layers * (getattr(config, "num_key_value_heads", None) or heads) * head_size
    )
    widest = 4 * (getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
    item: int = model.dtype.itemsize
    return tokens * (cached + widest) * item


def rows_at_once(model: Any, tokens: int) -> int:
    """How many conversations of so many tokens are generated in one batch; the same on every run of a machine."""
    if model.device.type != "cuda":
        return CPU_ROWS
    total = torch.cuda.get_device_properties(model.device).total_memory
    total = int(total * torch.cuda.get_per_process_memory_fraction(model.device))
    left = total - torch.cuda.memory_allocated(model.device)
    return max(1, int(GPU_SHARE * left) // bytes_of_answer(model, tokens))


def samples_of(answers: Sequence[Answer]) -> list[SampleRecord]:
    """One record per fixed prompt: the answer and its form."""
    return [_sample(prompt, answer) for prompt, answer in zip(PROMPTS, answers, strict=True)]


def _sample(prompt: str, answer: Answer) -> SampleRecord:
    return SampleRecord(
        prompt=prompt,
        answer=answer.text,
        n_tokens=len(answer.token_ids),
        stopped=answer.stopped,
        repetition=round(repetition(answer.token_ids), 4),
    )


def summarise(samples: Sequence[SampleRecord]) -> Generation:
    """Means over the prompts; stop_rate is the share of answers that ended by themselves."""
    count = len(samples)
    return Generation(
        n_prompts=count,
        stop_rate=round(sum(sample.stopped for sample in samples) / count, 4),
        mean_new_tokens=round(sum(sample.n_tokens for sample in samples) / count, 2),
        repetition=round(sum(sample.repetition for sample in samples) / count, 4),
    )
