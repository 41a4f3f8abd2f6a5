"""Models that read images too: their language model is scored and asked, as the whole model would answer to text alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from abctune.core.errors import UserError
from abctune.llm.auto_class import auto_class
from abctune.llm.chat import prompt_ids
from abctune.llm.heads import head_of
from abctune.llm.inference import load_for_inference
from abctune.llm.likelihood import conversation_nll
from abctune.llm.stops import stop_token_ids
from abctune.llm.tokenizer import load_tokenizer
from stages.eval.generation import answer_all
from tests import small
from tests.llm.test_architectures import own_loss, rows
from tests.llm.wrappers import WRAPPERS, write_wrapper

PROMPTS = ("Hi", "What is the time?", "a b c d e f g h i j k")
NEW_TOKENS = 6


@pytest.fixture(scope="module", params=WRAPPERS)
def folder(request, tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp(request.param)
    write_wrapper(request.param, made)
    return made


def whole(folder: Path):
    """The published class, which reads images as well."""
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


def test_eval_scores_and_asks_it_as_the_whole_model_does(folder):
    model, wanted = load_for_inference(torch.float32, base=folder), whole(folder)
    ids, labels = rows()
    losses = [own_loss(wanted, *row) for row in zip(ids, labels, strict=True)]
    assert conversation_nll(model, ids, labels, batch_tokens=100) == pytest.approx(losses, rel=1e-5)
    assert head_of(model) is not None, "scored by its own forward: right, but slower"

    tokenizer = load_tokenizer(folder)
    found = answer_all(model, tokenizer, PROMPTS, NEW_TOKENS)
    stops = stop_token_ids(tokenizer)
    for text, answer in zip(PROMPTS, found, strict=True):
        prompt = prompt_ids(tokenizer, [{"role": "user", "content": text}])
        said = wanted.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=sorted(stops),
            pad_token_id=tokenizer.pad_token_id,
        )[0, len(prompt) :].tolist()
        end = next((place for place, token in enumerate(said) if token in stops), len(said))
        assert answer.token_ids == said[:end]
    assert len({tuple(answer.token_ids) for answer in found}) > 1, "the model says something"


def test_a_model_that_does_not_continue_a_text_is_named(tmp_path):
    for kind, says in (
        ("vit", "does not continue"),
        ("t5", "does not continue"),
        ("new", "has no code for"),
    ):
        (tmp_path / "config.json").write_text(f'{{"model_type": "{kind}"}}')
        with pytest.raises(UserError, match=says):
            auto_class(tmp_path)
    small.write_model(tmp_path / "llama")
    assert auto_class(tmp_path / "llama").__name__ == "AutoModelForCausalLM"
