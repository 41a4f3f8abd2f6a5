"""As many answers at once as memory takes, and the same answers however many those are."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from abctune.core.params import ChoiceCheck
from stages.eval import generation
from stages.eval.generation import answer_all, bytes_of_answer
from stages.eval.own_checks import Reference
from stages.eval.own_tasks import OwnTask, line_of
from tests import small
from tests.llama_3b import LLAMA_3B

PROMPTS = [f"{letter * (3 * i + 1)}?" for i, letter in enumerate("abcdefg")]


@pytest.fixture(scope="module")
def model(small_model):
    model = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32).eval()
    model.config.use_cache = False
    return model


def batches_of(monkeypatch, model, rows: int, cores: int = 1) -> tuple[list[int], list[list[int]]]:
    """The batches' sizes, largest first, and the answers' ids where memory takes so many rows."""
    sizes = []
    generate = generation.generate

    def counted(model, tokenizer, conversations, max_new_tokens, *tools):
        sizes.append(len(conversations))
        return generate(model, tokenizer, conversations, max_new_tokens, *tools)

    with monkeypatch.context() as patch:
        patch.setattr(generation, "generate", counted)
        patch.setattr(generation, "rows_at_once", lambda *_: rows)
        patch.setattr(generation, "cores_for", lambda _: cores)
        answers = answer_all(model, small.chatml_tokenizer(), PROMPTS, 6)
    assert model.config.use_cache is False, "as it was before"
    return sorted(sizes, reverse=True), [answer.token_ids for answer in answers]


def test_how_many_are_generated_at_once_does_not_change_an_answer(monkeypatch, model):
    sizes, alone = batches_of(monkeypatch, model, 1)
    assert sizes == [1] * 7
    for rows, cores, wanted in ((3, 1, [3, 3, 1]), (3, 2, [3, 3, 1]), (100, 2, [7])):
        sizes, answers = batches_of(monkeypatch, model, rows, cores)
        assert sizes == wanted
        assert answers == alone


def test_a_card_s_memory_decides_and_without_one_the_number_is_fixed(monkeypatch):
    class Card:
        total_memory = 80 * 2**30

    class Model:
        config = LLAMA_3B
        dtype, device = torch.bfloat16, torch.device("cuda", 0)

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Card)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 6 * 2**30)
    one = bytes_of_answer(Model, 1280)
    for share in (1.0, 0.25):  # of the card, that this process may take: python -m tools.together
        monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _, share=share: share)
        assert generation.rows_at_once(Model, 1280) == int(0.6 * (80 * share - 6) * 2**30) // one
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _: 1.0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 80 * 2**30 - 1)
    assert generation.rows_at_once(Model, 1280) == 1, "at least one, whatever the model takes"
    Model.device = torch.device("cpu")
    assert generation.rows_at_once(Model, 1280) == 12


def test_an_answer_s_memory_is_its_cache_and_more():
    """The 3B shape: 28 layers, 8 key-value heads of 128 in 16 bits are 114,688 bytes a token."""

    class Model:
        config = LLAMA_3B
        dtype = torch.bfloat16

    assert bytes_of_answer(Model, 1000) == 1000 * (114_688 + 4 * 8192 * 2)


def test_an_answer_is_judged_without_the_thoughts_before_it(monkeypatch, model):
    """As if the model wrote these ids, the first of which is a mark's."""
    tokenizer = small.chatml_tokenizer()
    wrote = tokenizer.encode("<think>\nno or yes?\n</think>\n\nyes<|im_end|>", add_special_tokens=False)
    monkeypatch.setattr(
        model, "generate", lambda input_ids, **_: torch.cat([input_ids, torch.tensor([wrote])], dim=1)
    )
    [answer] = answer_all(model, tokenizer, ["Say yes"], 40)
    assert answer.stopped and answer.text.startswith("<think>") and answer.after_thoughts == "yes"
    check = ChoiceCheck(kind="choice", labels=("yes", "no"))
    task = OwnTask("1", "chat", [], None, Reference("yes"))
    line = line_of(check, [task], [answer])
    assert line.passed and line.predicted == "yes" and "no or yes?" in line.answer
