"""A text for which a model has no embeddings or positions is refused in one line, on a GPU before its error ends the process."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from abctune.core.errors import UserError
from abctune.llm.inference import generate
from abctune.llm.likelihood import conversation_nll
from abctune.llm.lookups import positions
from tests import small
from tests.llm.test_architectures import ARCHITECTURES, SHAPE, build
from tests.llm.wrappers import WRAPPERS, write_wrapper

SIZE = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 2, "max_position_embeddings": 48}
LEARNED = {
    "gpt2": {"n_embd": 32, "n_layer": 1, "n_head": 2},
    "opt": {"word_embed_proj_dim": 32, "ffn_dim": 32, "num_hidden_layers": 1},
    "gpt_bigcode": {"n_layer": 1},
    "gptj": {"n_layer": 1, "rotary_dim": 8},
    "bert": {"is_decoder": True, "num_hidden_layers": 1, "intermediate_size": 32},
}


@pytest.mark.parametrize("kind", LEARNED)
def test_learned_positions_are_as_many_as_the_model_can_read(kind):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZE | LEARNED[kind])).eval()
    assert positions(model) == 48
    with torch.inference_mode():
        model(torch.ones(1, 48, dtype=torch.long))
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.ones(1, 49, dtype=torch.long))


@pytest.mark.parametrize("kind", [name for name in ARCHITECTURES if name != "gpt2"])
def test_computed_positions_have_no_end(kind):
    assert positions(build(kind)) is None


def test_the_positions_of_images_are_not_those_of_text(tmp_path):
    from abctune.llm.inference import load_for_inference

    assert {"gemma3", "qwen3_vl"} < set(WRAPPERS)
    for kind in ("gemma3", "qwen3_vl"):
        write_wrapper(kind, tmp_path / kind)
        assert positions(load_for_inference(torch.float32, base=tmp_path / kind)) is None


def test_a_row_beyond_the_positions_is_refused():
    model, rows = build("gpt2"), [[5] * 129]
    assert conversation_nll(model, [[5] * 128], [[5] * 128], 200)
    with pytest.raises(
        UserError, match=r"has 128 positions, fewer than the 129 tokens .*data.max_length to at most 128"
    ):
        conversation_nll(model, rows, rows, 200)


def test_a_token_without_an_embedding_is_refused():
    model = build("llama")
    assert conversation_nll(model, [[5, 127]], [[5, 127]], 200)
    with pytest.raises(UserError, match="token 128 of the tokenizer has no embedding: the model has 128"):
        conversation_nll(model, [[5, 128]], [[5, 5]], 200)


def test_answers_end_where_the_models_positions_do():
    tokenizer = small.chatml_tokenizer()
    config = AutoConfig.for_model("gpt2", **SHAPE | ARCHITECTURES["gpt2"] | {"vocab_size": len(tokenizer)})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    question = [{"role": "user", "content": "hi"}]
    [answer] = generate(model, tokenizer, [question], max_new_tokens=1000)
    assert 0 < len(answer.token_ids) < 128 and not answer.stopped
    with pytest.raises(UserError, match="has 128 positions"):
        generate(model, tokenizer, [[{"role": "user", "content": "hi" * 60}]], max_new_tokens=1)
