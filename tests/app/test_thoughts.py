"""Thoughts in answers: what is shown of them, and what the next question's prompt has of them."""

from __future__ import annotations

import pytest

from abctune.core.params import load_params
from abctune.llm.chat import prompt_ids, render
from abctune.llm.thoughts import parted
from abctune.llm.tokenizer import load_tokenizer
from app.context import fit
from app.engines import Job
from app.engines.choose import load_engine
from app.models import find_models
from app.request import Sampling
from tests import small
from tests.app import planted
from tests.llm.test_thoughts import WRITTEN

GREEDY = Sampling(temperature=0, repetition_penalty=1)
ASKED, AGAIN = {"role": "user", "content": "Hi"}, {"role": "user", "content": "And?"}
GEMMA = ("<|channel>", "<channel|>")
GPT_OSS_TOKENS = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>")


@pytest.mark.parametrize("written", WRITTEN)
def test_thoughts_and_answer_of_a_text_are_told_apart(written):
    before, text, answer = WRITTEN[written]
    opened = before.strip() if before.strip() == "<think>" else ""
    found = parted(text, opened)
    assert found[1].strip() == answer
    assert found[0] in ("", "Hm", "HmHm") and (found[0] == "") == ("Hm" not in text)


def tokenizer_with(marks: tuple[str, ...], template: str = small.CHATML):
    tokenizer = small.byte_tokenizer(
        (*small.CHATML_TOKENS, *marks), eos_token="<|im_end|>", pad_token="<pad>", unk_token="<|endoftext|>"
    )
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("name", ["llama.cpp", "transformers"])
def test_marks_of_thoughts_that_are_special_tokens_are_shown(name, tmp_path):
    base, said = tmp_path / "models/base", "é<|channel>abc<channel|>xyz"
    small.write_model(base, tokenizer=tokenizer_with(GEMMA))
    planted.speak_in_turn(base, f"{said}<|im_end|>")
    planted.write_gguf(base)
    models = find_models(tmp_path, base, load_params(), only="A")
    tokenizer = load_tokenizer(base)
    engine = load_engine(name, models, tokenizer, tmp_path / "cache")
    job = Job("base", prompt_ids(tokenizer, [ASKED]), 20, GREEDY)
    pieces = list(engine.stream([job]))
    assert "".join(piece.text for piece in pieces) == said
    assert pieces[-1].finish == "stop" and pieces[-1].n_tokens == len(tokenizer.encode(said))


def prompt_of(tokenizer, answer: str) -> str:
    turns = [ASKED, {"role": "assistant", "content": answer}, AGAIN]
    return tokenizer.decode(fit(tokenizer, turns, 64, 1000).ids)


def test_past_thoughts_stand_in_the_next_prompt_where_the_template_prints_them():
    tokenizer = tokenizer_with(("<think>", "</think>"), small.TOOLS_CHATML)
    turn = {"role": "assistant", "content": "Yo", "reasoning_content": "Hm"}
    wanted = render(tokenizer, [ASKED, turn, AGAIN], add_generation_prompt=True)
    assert "Hm" in wanted and prompt_of(tokenizer, "<think>\nHm\n</think>\n\nYo") == wanted
    forgetful = tokenizer_with((), small.FORGETFUL_CHATML)
    assert "Hm" not in prompt_of(forgetful, "<think>\nHm\n</think>\n\nYo")


@pytest.mark.parametrize(
    ("marks", "answer"),
    [
        (GEMMA, "<|channel>thought\nHm<channel|>Yo"),
        (
            GPT_OSS_TOKENS,
            "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>final<|message|>Yo",
        ),
        (GPT_OSS_TOKENS, "<|channel|>final<|message|>Yo"),
        (("[THINK]", "[/THINK]"), "[THINK]Hm[/THINK]Yo"),
    ],
)
def test_past_thoughts_between_special_tokens_are_left_out_where_the_template_has_no_place(marks, answer):
    tokenizer = tokenizer_with(marks)
    assert prompt_of(tokenizer, answer) == prompt_of(tokenizer, "Yo")


def test_a_text_that_a_template_without_thoughts_prints_whole_stays_whole():
    """A model may have been trained on thoughts as text: then that is what stands before its next answer."""
    tokenizer = tokenizer_with(())
    answer = "<think>Hm</think>Yo"
    assert answer in prompt_of(tokenizer, answer)
