"""What a model thinks before it answers is told from its answer, in the notation of each family."""

from __future__ import annotations

import pytest

from abctune.llm.thoughts import answer_ids
from tests import small

GPT_OSS = "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant"
# {whose notation, or what is special: (the prompt's end, what the model writes, its answer)}
WRITTEN = {
    "Qwen": ("", "<think>\nHm\n</think>\n\nYes", "Yes"),
    "DeepSeek R1, whose prompt opens the thoughts": ("<think>\n", "Hm\n</think>\n\nYes", "Yes"),
    "Ministral": ("", "[THINK]Hm[/THINK]Yes", "Yes"),
    "Command-R": (
        "",
        "<|START_THINKING|>Hm<|END_THINKING|><|START_RESPONSE|>Yes<|END_RESPONSE|>",
        "<|START_RESPONSE|>Yes<|END_RESPONSE|>",
    ),
    "Gemma 4": ("", "<|channel>thought\nHm<channel|>Yes", "Yes"),
    "gpt-oss": ("", f"{GPT_OSS}<|channel|>final<|message|>Yes", "Yes"),
    "gpt-oss, which thinks twice": ("", f"{GPT_OSS}{GPT_OSS}<|channel|>final<|message|>Yes", "Yes"),
    "gpt-oss without thoughts": ("", "<|channel|>final<|message|>Yes", "Yes"),
    "no thoughts": ("", "Yes", "Yes"),
    "no thoughts after a prompt with empty ones": ("<think>\n\n</think>\n\n", "Yes", "Yes"),
    "an answer about the notation": ("", "Put it between <think> and </think>.", "Put it between <think> and </think>."),
    "thoughts that do not end": ("", "<think>\nHm", ""),
    "thoughts of the prompt's that do not end": ("<think>", "Hm", ""),
    "thoughts of gpt-oss that do not end": ("", "<|channel|>analysis<|message|>Hm", ""),
}  # fmt: skip
MARKS = (
    *("<think>", "</think>", "[THINK]", "[/THINK]", "<|START_THINKING|>", "<|END_THINKING|>"),
    *("<|channel>", "<channel|>", "<|channel|>", "<|message|>", "<|start|>", "<|end|>"),
)


@pytest.mark.parametrize("special", [MARKS, ("<|other|>",)], ids=["marks are tokens", "marks are texts"])
@pytest.mark.parametrize("written", WRITTEN)
def test_the_answer_is_what_follows_the_thoughts(written, special):
    tokenizer = small.byte_tokenizer(special)
    before, text, answer = WRITTEN[written]
    prompt, ids = (tokenizer.encode(one, add_special_tokens=False) for one in (f"ask {before}", text))
    found = answer_ids(tokenizer, prompt, ids)
    assert tokenizer.decode(found).strip() == answer
    assert found == ids[len(ids) - len(found) :]
