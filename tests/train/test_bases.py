"""A base that cannot be trained on is told in one line before the first step."""

from __future__ import annotations

import json

from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from tests import small


def refused(project) -> str:
    done = project.stage("train", "B", check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def test_by_unsloth_a_missing_tensor_and_a_token_without_an_embedding(ready_to_train):
    base = ready_to_train.root / "models/base"
    whole = load_file(base / "model.safetensors")
    left = {name: tensor for name, tensor in whole.items() if name != "model.norm.weight"}
    save_file(left, base / "model.safetensors", {"format": "pt"})
    assert "error: models/base: its safetensors lack model.norm.weight" in refused(ready_to_train)
    rows = len(small.chatml_tokenizer()) - 200  # fewer than the letters' ids
    cut = {
        name: tensor[:rows].clone() if "embed" in name or "lm_head" in name else tensor
        for name, tensor in whole.items()
    }
    save_file(cut, base / "model.safetensors", {"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"vocab_size": rows}))
    assert f"has no embedding: the model has {rows}" in refused(ready_to_train)


def test_more_tokens_than_learned_positions(ready_to_train):
    tokens = len(small.chatml_tokenizer())
    config = GPT2Config(vocab_size=tokens, n_embd=32, n_layer=1, n_head=2, n_positions=64)
    (ready_to_train.root / "models/base/config.json").unlink()
    GPT2LMHeadModel(config).save_pretrained(ready_to_train.root / "models/base")
    assert (
        "error: models/base has 64 positions, fewer than the 96 tokens that a text may have; set"
        " profiles.<profile>.data.max_length to at most 64"
    ) in refused(ready_to_train)
