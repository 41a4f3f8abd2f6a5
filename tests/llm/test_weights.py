"""A model whose weights are not all there is refused before anything is loaded; every other is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
)

from abctune.core.errors import UserError
from abctune.llm.auto_class import load_model, require_all_weights
from tests import small
from tests.llm.test_architectures import ARCHITECTURES, build
from tests.llm.wrappers import WRAPPERS, write_wrapper

FILE = "model.safetensors"
NARROW = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        load_model(folder, torch.float32, None)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kind", [*ARCHITECTURES, *WRAPPERS])
def test_a_whole_model_is_loaded_and_one_that_lacks_a_tensor_is_not(kind: str, tmp_path: Path) -> None:
    write_wrapper(kind, tmp_path) if kind in WRAPPERS else build(kind).save_pretrained(tmp_path)
    before = torch.get_rng_state()
    require_all_weights(tmp_path)
    assert torch.equal(torch.get_rng_state(), before), "the check changes what is drawn after it"
    weights = load_file(tmp_path / FILE)
    name = next(name for name in weights if name.endswith(("layers.1.input_layernorm.weight", "h.1.ln_1.weight",
        "layers.1.self_attn.q_proj.weight")))  # fmt: skip
    tensor = weights.pop(name)
    save_file(weights, tmp_path / FILE, {"format": "pt"})
    assert name.partition("layers.")[2] in (said := refused(tmp_path)) and "its safetensors lack " in said
    save_file(weights | {name: tensor[:-1].clone()}, tmp_path / FILE, {"format": "pt"})
    assert "have another shape than config.json says: " in refused(tmp_path)


def test_experts_that_are_not_all_there_are_told(tmp_path: Path) -> None:
    build("mixtral").save_pretrained(tmp_path)
    weights = load_file(tmp_path / FILE)
    del weights["model.layers.1.block_sparse_moe.experts.3.w1.weight"]
    save_file(weights, tmp_path / FILE, {"format": "pt"})
    assert "do not hold all tensors of its experts" in refused(tmp_path)


@pytest.mark.parametrize("other", [LlamaModel, LlamaForSequenceClassification])
def test_a_model_without_an_output_matrix_is_told_unless_it_is_tied_to_the_embeddings(
    other: type, tmp_path: Path
) -> None:
    config = build("llama").config
    other(config).save_pretrained(tmp_path)
    assert "lack lm_head.weight, for which transformers would take random numbers" in refused(tmp_path)
    config.tie_word_embeddings = True
    other(config).save_pretrained(tmp_path)
    assert isinstance(load_model(tmp_path, torch.float32, None), LlamaForCausalLM)


def test_many_missing_tensors_are_counted(tmp_path: Path) -> None:
    small.write_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"num_hidden_layers": 3}
    (tmp_path / "config.json").write_text(json.dumps(config | {"layer_types": None}))
    assert "model.layers.2.mlp.gate_proj.weight and 6 more, for which" in refused(tmp_path)


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    small.write_model(tmp_path)
    (tmp_path / FILE).write_bytes(b"cut")
    assert f"{FILE} is damaged (" in refused(tmp_path)


def test_an_encoder_is_no_model_that_continues_a_text_unless_it_says_so(tmp_path: Path) -> None:
    """BERT's weights fit a class for that, which then attends to what comes next."""
    BertForMaskedLM(BertConfig(**NARROW)).save_pretrained(tmp_path)
    assert "a model of type bert does not continue a text" in refused(tmp_path)
    BertLMHeadModel(BertConfig(**NARROW, is_decoder=True)).save_pretrained(tmp_path)
    load_model(tmp_path, torch.float32, None)


def test_a_models_own_code_is_never_run_nor_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.write_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"model_type": "mine"}
    config["auto_map"] = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "mine.py").write_text("raise SystemExit('the code has run')")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    assert "contains custom code" in refused(tmp_path)
