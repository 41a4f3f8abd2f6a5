"""Adapters of the kinds that `lora` in params.yaml can ask for, in the chat's reference engine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from abctune.llm.chat import prompt_ids
from app.engines import Job
from app.engines.transformers_engine import TransformersEngine
from app.request import Sampling
from tests import small

GREEDY = Sampling(temperature=0, repetition_penalty=1)
TOKENS = 8


def write_models(root: Path, setting: str) -> None:
    """A base, a usual adapter A, and B of another kind."""
    shape = small.SHAPE | {"initializer_range": 0.3}
    small.write_model(root / "base", tokenizer=small.chatml_tokenizer(), shape=shape)
    for name, kind in {"A": {}, "B": {setting: True}}.items():
        base = AutoModelForCausalLM.from_pretrained(root / "base")
        torch.manual_seed(ord(name))
        lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, **kind)
        get_peft_model(base, lora).save_pretrained(root / name)


def by_peft(root: Path, name: str, prompt: list[int]) -> str:
    """The greedy answer of one adapter alone on the base, or of the base."""
    model = AutoModelForCausalLM.from_pretrained(root / "base").eval()
    if name != "base":
        model = PeftModel.from_pretrained(model, root / name).eval()
    ids = model.generate(input_ids=torch.tensor([prompt]), max_new_tokens=TOKENS, do_sample=False)[0]
    return small.chatml_tokenizer().decode(ids[len(prompt) :], skip_special_tokens=True)


def test_at_strength_0_a_dora_adapter_leaves_the_base_as_it_is(tmp_path):
    write_models(tmp_path, "use_dora")
    path = tmp_path / "B" / "adapter_model.safetensors"
    weights = load_file(path)  # magnitudes as training leaves them: no longer the base's
    moved = {name: 2 * weight if "magnitude" in name else weight for name, weight in weights.items()}
    assert any("magnitude" in name for name in weights)
    save_file(moved, path)
    tokenizer = small.chatml_tokenizer()
    prompt = prompt_ids(tokenizer, [{"role": "user", "content": "hi"}])
    engine = TransformersEngine(tmp_path / "base", {"B": tmp_path / "B"}, tokenizer, 256, torch.float32)
    answers = []
    for strength in (0.0, 1.0):
        sampling = GREEDY.model_copy(update={"adapter_strength": strength})
        pieces = engine.stream([Job("B", prompt, TOKENS, sampling)])
        answers.append("".join(piece.text for piece in pieces))
    assert answers == [by_peft(tmp_path, name, prompt) for name in ("base", "B")]
    assert answers[0] != answers[1]


@pytest.mark.parametrize("setting", ["use_rslora", "use_dora"])
def test_a_comparison_gives_each_adapters_own_answer(setting, tmp_path):
    write_models(tmp_path, setting)
    tokenizer = small.chatml_tokenizer()
    prompt = prompt_ids(tokenizer, [{"role": "user", "content": "hi"}])
    adapters = {name: tmp_path / name for name in "AB"}
    engine = TransformersEngine(tmp_path / "base", adapters, tokenizer, 256, torch.float32)
    models = ("A", "base", "B")
    found = dict.fromkeys(models, "")
    for piece in engine.stream([Job(name, prompt, TOKENS, GREEDY) for name in models]):
        found[models[piece.index]] += piece.text
    assert found == {name: by_peft(tmp_path, name, prompt) for name in models}
    assert len(set(found.values())) == len(models)
