"""Where a reply's thoughts end and its answer begins, in what a model wrote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What thoughts stand between: Qwen's, DeepSeek's and GLM's kind, Mistral's, Command-R's, Gemma 4's, gpt-oss's.
THOUGHTS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought", "<channel|>"),
    ("<|channel|>analysis", "<|end|>"),
    ("<|start|>assistant<|channel|>analysis", "<|end|>"),
)
# gpt-oss's heading of an answer.
HEADINGS = (
    ("<|channel|>final", "<|message|>"),
    ("<|start|>assistant<|channel|>final", "<|message|>"),
)
PAIRS = (*THOUGHTS, *HEADINGS)
TAIL = 8  # tokens at the end of a prompt that hold the mark by which it opens the thoughts itself


def opening(prompt: str) -> str:
    """The mark by which the end of a prompt opens the thoughts itself, as DeepSeek R1's does; "" where none does."""
    end = prompt.rstrip()
    return next((mark for mark, _ in THOUGHTS if end.endswith(mark)), "")


def parted(text: str, opened: str = "") -> tuple[str, str]:
    """The thoughts of an answer's text, and what follows them.

    Args:
        opened: the mark that the prompt ends with, where it opens the thoughts itself.
    """
    thoughts, left = "", (opened + text).lstrip()
    while True:
        found = next((pair for pair in PAIRS if left.startswith(pair[0])), None)
        if found is None:
            return thoughts, left
        inside, _, left = left.removeprefix(found[0]).partition(found[1])
        left = left.lstrip()
        if found in THOUGHTS:
            thoughts += inside.rpartition("<|message|>")[2].strip()


def answer_ids(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], ids: Sequence[int]) -> list[int]:
    """The token ids of a reply after its thoughts; none where the thoughts do not end.

    Args:
        prompt: what the reply follows: some templates (DeepSeek R1's) open the thoughts in it.
        ids: all that the model wrote, without its stop token.
    """
    before = opening(tokenizer.decode(prompt[-TAIL:]))
    left = list(ids)
    while True:
        text = (before + tokenizer.decode(left)).lstrip()
        closing = next((close for mark, close in PAIRS if text.startswith(mark)), None)
        if closing is None:
            return left
        left, before = _behind(tokenizer, left, closing), ""


def _behind(tokenizer: PreTrainedTokenizerBase, ids: list[int], mark: str) -> list[int]:
    """The ids after the first ones whose text has the mark; none where no text has it."""
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high) // 2
        if mark in tokenizer.decode(ids[:middle]):
            high = middle
        else:
            low = middle + 1
    return ids[low:] if mark in tokenizer.decode(ids[:low]) else []
