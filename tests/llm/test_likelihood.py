"""The one number everything is compared by."""

import random

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from abctune.llm.likelihood import IGNORE, batches, conversation_nll


@pytest.fixture(scope="module")
def model(small_model):
    base = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    torch.manual_seed(0)
    adapted = get_peft_model(
        base, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    )
    return adapted.eval()


@pytest.fixture(scope="module")
def rows():
    rng = random.Random(0)
    ids = [[rng.randrange(260) for _ in range(rng.randrange(2, 90))] for _ in range(23)]
    labels = [[IGNORE if rng.random() < 0.5 else token for token in row] for row in ids]
    labels[4] = [IGNORE] * len(labels[4])
    return ids, labels


def reference(model, ids, labels):
    """One conversation at a time with all logits, as the definition says."""
    found = []
    for row, wanted in zip(ids, labels, strict=True):
        with torch.no_grad():
            log_p = model(torch.tensor([row])).logits[0].double().log_softmax(-1)
        found.append(
            -sum(
                log_p[place - 1, token].item()
                for place, token in enumerate(wanted)
                if place and token != IGNORE
            )
        )
    return found


def test_it_is_minus_the_log_probability_of_the_supervised_tokens(model, rows):
    assert conversation_nll(model, *rows, batch_tokens=400) == pytest.approx(
        reference(model, *rows), rel=1e-5, abs=1e-9
    )


@pytest.mark.parametrize("batch_tokens", [1, 4 * 90, 10_000])
def test_the_batch_size_does_not_change_it(model, rows, batch_tokens):
    one_by_one = conversation_nll(model, *rows, batch_tokens=1)
    assert conversation_nll(model, *rows, batch_tokens=batch_tokens) == pytest.approx(
        one_by_one, rel=1e-5, abs=1e-9
    )


def test_the_number_of_cores_does_not_change_it(model, rows):
    one = conversation_nll(model, *rows, batch_tokens=400)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert conversation_nll(model, *rows, batch_tokens=400) == pytest.approx(one, rel=1e-5, abs=1e-9)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_no_rows_have_no_numbers(model):
    assert conversation_nll(model, [], [], batch_tokens=400) == []


def test_the_adapter_counts(model, rows):
    with model.disable_adapter():
        base = conversation_nll(model, *rows, batch_tokens=400)
    assert base != pytest.approx(conversation_nll(model, *rows, batch_tokens=400), rel=1e-3)


def test_batches_hold_every_row_once_within_the_budget():
    lengths = [5, 100, 7, 7, 50, 200, 1]
    found = list(batches(lengths, 100))
    assert sorted(index for batch in found for index in batch) == list(range(7))
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 100 for batch in found)
    assert found[0] == [
        5
    ]  # a row above the budget goes alone, first, so that memory runs out at once or never
