"""Greedy answers to the fixed prompts, and what their form tells: do they end, how long are they, do they loop?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stages.common.conversation import Message
from stages.common.inference import Answer, generate
from stages.common.prompts import PROMPTS

NGRAM = 3


def repetition(token_ids: Sequence[int]) -> float:
    """Share of an answer's token 3-grams that occurred in it before: 0 is all new, near 1 a loop.

    1 - distinct-3 of Li et al. (2016), "A Diversity-Promoting Objective Function for Neural Conversation Models".
    """
    grams = [tuple(token_ids[start : start + NGRAM]) for start in range(len(token_ids) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def answer_prompts(model: Any, tokenizer: Any, max_new_tokens: int) -> list[dict[str, Any]]:
    """One row per fixed prompt: the answer and its form."""
    answers = generate(
        model, tokenizer, [[Message(role="user", content=prompt)] for prompt in PROMPTS], max_new_tokens
    )
    return [_row(prompt, answer) for prompt, answer in zip(PROMPTS, answers, strict=True)]


def _row(prompt: str, answer: Answer) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "answer": answer.text,
        "n_tokens": len(answer.token_ids),
        "stopped": answer.stopped,
        "repetition": round(repetition(answer.token_ids), 4),
    }


def summarise(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over the prompts; stop_rate is the share of answers that ended by themselves."""
    count = len(samples)
    return {
        "n_prompts": count,
        "stop_rate": round(sum(sample["stopped"] for sample in samples) / count, 4),
        "mean_new_tokens": round(sum(sample["n_tokens"] for sample in samples) / count, 2),
        "repetition": round(sum(sample["repetition"] for sample in samples) / count, 4),
    }
