"""Decoding over a cache of fixed size gives the answers of transformers' own generate."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from abctune.llm.decoding import greedy, is_plain
from tests import small

PROMPTS = [[7, 8, 9], [100] * 12, [55, 66], list(range(20, 60))]


@pytest.fixture(scope="module")
def model(small_model):
    base = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    return get_peft_model(base, lora).eval()


def asked(pad):
    width = max(map(len, PROMPTS))
    ids = [[pad] * (width - len(prompt)) + prompt for prompt in PROMPTS]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def by_generate(model, stops, pad, tokens):
    prompts = asked(pad)
    found = model.generate(
        **prompts, max_new_tokens=tokens, do_sample=False, eos_token_id=stops, pad_token_id=pad
    )
    return found[:, prompts["input_ids"].shape[1] :].tolist()


def test_the_tokens_are_those_of_generate(model):
    pad = small.chatml_tokenizer().pad_token_id
    expected = by_generate(model, [], pad, 40)
    assert len({tuple(row) for row in expected}) == len(PROMPTS), (
        "all answers differ, so rows are not mixed up"
    )
    assert greedy(model, **asked(pad), max_new_tokens=40, stops=[], pad=pad).tolist() == expected


def test_a_stop_token_ends_its_row_and_no_other(model):
    pad = small.chatml_tokenizer().pad_token_id
    stop = by_generate(model, [], pad, 40)[1][5]
    expected = by_generate(model, [stop], pad, 40)
    found = greedy(model, **asked(pad), max_new_tokens=40, stops=[stop], pad=pad).tolist()
    assert [row[: len(expected[0])] for row in found] == expected
    assert all(token == pad for row in found for token in row[len(expected[0]) :])


def test_a_model_whose_settings_change_answers_is_left_to_generate(small_model):
    model = AutoModelForCausalLM.from_pretrained(small_model)
    assert is_plain(model)
    model.generation_config.repetition_penalty = 1.1
    assert not is_plain(model)
