"""Small models of every kind that is exported, each as a project whose variant B is published."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from tests import small

# Rows of 256 and 512, so that the 256-wide blocks of q4_k_m are used; logits that differ from token to token.
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.08,
}
LLAMA_3 = {
    "rope_theta": 10_000.0,
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The models are so small that threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tokenizer():
    """The byte tokenizer with one merge: llama.cpp loads none without."""
    plain = small.chatml_tokenizer()
    described = json.loads(plain.backend_tokenizer.to_str())
    described["model"]["vocab"]["th"] = len(plain)
    described["model"]["merges"] = [["t", "h"]]
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(described)),
        eos_token=plain.eos_token,
        pad_token=plain.pad_token,
        unk_token=plain.unk_token,
        chat_template=plain.chat_template,
        clean_up_tokenization_spaces=False,
    )
    assert len(made.encode("th")) == 1
    return made


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders with a base of another shape than the project's and an adapter that does much, by the base's kind."""
    folders = {}
    for kind, extra in {
        "tied": {"tie_word_embeddings": True},
        "llama 3": {"tie_word_embeddings": False, "rope_parameters": LLAMA_3},
    }.items():
        folder = tmp_path_factory.mktemp("models")
        small.write_model(folder / "base", tokenizer=tokenizer(), shape=SHAPE | extra)
        base = AutoModelForCausalLM.from_pretrained(folder / "base")
        torch.manual_seed(1)
        lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
        get_peft_model(base, lora).save_pretrained(folder / "B")
        AutoTokenizer.from_pretrained(folder / "base").save_pretrained(folder / "B")
        folders[kind] = folder
    return folders


@pytest.fixture(params=["tied", "llama 3"])
def project(request, models, ready_to_train, monkeypatch):
    """A project whose variant B is published; the working directory."""
    base = ready_to_train.root / "models/base"
    for file in base.iterdir():
        file.unlink()
    for name in ("base", "B"):
        source = models[request.param] / name
        (ready_to_train.root / "models" / name).mkdir(exist_ok=True)
        for file in source.iterdir():
            (ready_to_train.root / "models" / name / file.name).write_bytes(file.read_bytes())
    monkeypatch.chdir(ready_to_train.root)
    return ready_to_train
